"""Soft Cap Sampling as printed in Algorithm 2, Hard Cap and No Cap, and their exact laws.

The ``naive_*`` functions run the loop of the paper: a softmax over the whole pool, a draw, a change
of the scores. The ``exact_*`` functions do not draw: they follow every path of the loop on a tiny
pool and return the probability of each vector of counts.

Symbols: M examples, N draws, G draws per round, penalty alpha (FLYT, Algorithm 2, section 3.6).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Counts = tuple[int, ...]
Law = dict[Counts, float]
Scores = Sequence[float] | npt.NDArray[np.float64]


# ---------------------------------------------------------------- the loop of the paper


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the softmax over the pool; the maximum is subtracted first to avoid overflow."""
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def naive_soft_cap(
    scores: Scores,
    num_samples: int,
    repetition_penalty: float,
    rng: np.random.Generator,
    batch_size: int = 1,
) -> npt.NDArray[np.int64]:
    """Run Algorithm 2 line by line; the last round draws only the draws that are still missing.

    Raises:
        ValueError: fewer than G weights are above zero, as in the public code.
    """
    current = np.array(scores, dtype=np.float64)
    counts = np.zeros(len(current), dtype=np.int64)
    drawn_so_far = 0
    while drawn_so_far < num_samples:
        weights = softmax(current)
        size = min(batch_size, num_samples - drawn_so_far)
        drawn = rng.choice(len(current), size=size, replace=False, p=weights)
        counts[drawn] += 1
        current[drawn] -= repetition_penalty
        drawn_so_far += size
    return counts


def naive_hard_cap(
    scores: Scores, num_samples: int, frequency_limit: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw one by one; an example at its frequency limit has probability zero (section 4.3)."""
    weights = softmax(np.array(scores, dtype=np.float64))
    counts = np.zeros(len(weights), dtype=np.int64)
    for _ in range(num_samples):
        allowed = np.where(counts < frequency_limit, weights, 0.0)
        counts[rng.choice(len(weights), p=allowed / allowed.sum())] += 1
    return counts


def naive_no_cap(
    scores: Scores, num_samples: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw ``num_samples`` times with replacement from the softmax of the scores."""
    weights = softmax(np.array(scores, dtype=np.float64))
    drawn = rng.choice(len(weights), size=num_samples, replace=True, p=weights)
    return np.bincount(drawn, minlength=len(weights)).astype(np.int64)


# ---------------------------------------------------------------- exact laws of tiny pools


def _next_draw(log_weights: Mapping[int, float]) -> dict[int, float]:
    """Return the probability of each of these examples to be drawn next.

    This is p_i / (1 - sum of the p already drawn), without a subtraction that loses digits.
    """
    top = max(log_weights.values())
    weights = {i: math.exp(value - top) for i, value in log_weights.items()}
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def _round_law(scores: Sequence[float], size: int) -> dict[frozenset[int], float]:
    """Return the probability of each set of a round, drawn one by one without replacement.

    The probability of a set is summed over all orders in which it can be drawn.
    """
    law: dict[frozenset[int], float] = {frozenset(): 1.0}
    for _ in range(size):
        longer: dict[frozenset[int], float] = defaultdict(float)
        for drawn, probability in law.items():
            left = {i: score for i, score in enumerate(scores) if i not in drawn}
            for i, chance in _next_draw(left).items():
                longer[drawn | {i}] += probability * chance
        law = dict(longer)
    return law


def _add_one(counts: Counts, drawn: frozenset[int]) -> Counts:
    return tuple(count + (i in drawn) for i, count in enumerate(counts))


def exact_soft_cap_distribution(
    scores: Scores, num_samples: int, repetition_penalty: float, batch_size: int = 1
) -> Law:
    """Return the probability of every count vector that Algorithm 2 can return."""
    start = [float(score) for score in scores]
    law: Law = {(0,) * len(start): 1.0}
    drawn_so_far = 0
    while drawn_so_far < num_samples:
        size = min(batch_size, num_samples - drawn_so_far)
        following: Law = defaultdict(float)
        for counts, probability in law.items():
            current = [s - repetition_penalty * n for s, n in zip(start, counts, strict=True)]
            for drawn, chance in _round_law(current, size).items():
                following[_add_one(counts, drawn)] += probability * chance
        law = dict(following)
        drawn_so_far += size
    return law


def exact_hard_cap_distribution(scores: Scores, num_samples: int, frequency_limit: int) -> Law:
    """Return the probability of every count vector of drawing with a frequency limit."""
    start = [float(score) for score in scores]
    law: Law = {(0,) * len(start): 1.0}
    for _ in range(num_samples):
        following: Law = defaultdict(float)
        for counts, probability in law.items():
            open_ones = {i: s for i, s in enumerate(start) if counts[i] < frequency_limit}
            for i, chance in _next_draw(open_ones).items():
                following[_add_one(counts, frozenset({i}))] += probability * chance
        law = dict(following)
    return law


def exact_no_cap_distribution(scores: Scores, num_samples: int) -> Law:
    """Return the multinomial law, from its closed form."""
    start = [float(score) for score in scores]
    top = max(start)
    log_total = top + math.log(math.fsum(math.exp(score - top) for score in start))
    law: Law = {}
    for counts in _compositions(num_samples, len(start)):
        log_probability = math.lgamma(num_samples + 1)
        for score, count in zip(start, counts, strict=True):
            log_probability += count * (score - log_total) - math.lgamma(count + 1)
        law[counts] = math.exp(log_probability)
    return law


def _compositions(total: int, parts: int) -> list[Counts]:
    """Return all ways to write ``total`` as an ordered sum of ``parts`` numbers >= 0."""
    if parts == 1:
        return [(total,)]
    return [
        (first, *rest)
        for first in range(total + 1)
        for rest in _compositions(total - first, parts - 1)
    ]
