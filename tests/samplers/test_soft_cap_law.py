"""Soft Cap Sampling follows the law of Algorithm 2, for G = 1 and for rounds of G > 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from datacomp_flyt.samplers import soft_cap_counts
from tests.oracles.algorithm2 import exact_soft_cap_distribution, naive_soft_cap, softmax
from tests.oracles.selection import UidPair, uid_array
from tests.samplers.law import assert_follows, assert_rejected, random_uids, tally
from tests.samplers.wrong_laws import with_replacement_inside_a_round


class Case(NamedTuple):
    scores: Sequence[float]
    num_samples: int
    alpha: float
    batch_size: int
    trials: int = 3_000


FOUR = (1.3, 0.4, 0.0, -0.9)
FIVE = (0.7, 0.6, -0.2, -0.5, -1.6)
SIX = (2.0, 1.1, 0.3, 0.0, -0.4, -1.0)

CASES = {
    "one draw a round": Case(FOUR, 6, 0.5, 1, 20_000),
    "two a round, remainder one": Case(FOUR, 7, 0.5, 2, 20_000),
    "three a round, remainder two": Case(FIVE, 8, 0.5, 3, 8_000),
    "one a round, no penalty": Case(FOUR, 5, 0.0, 1),
    "two a round, no penalty": Case(FOUR, 6, 0.0, 2),
    "one a round, the paper's penalty": Case(FOUR, 8, 0.15, 1, 4_000),
    "two a round, the paper's penalty": Case(FIVE, 5, 0.15, 2, 4_000),
    "one a round, large penalty": Case(SIX, 6, 2.0, 1),
    "three a round, large penalty": Case(SIX, 7, 2.0, 3),
    "first round not full": Case(SIX, 2, 0.5, 3),
    "every example every round, remainder two": Case(FOUR, 6, 0.5, 4),
    "scores around 1e6": Case([s + 1e6 for s in FOUR], 6, 0.5, 1),
    "scores around -1e6, two a round": Case([s - 1e6 for s in FOUR], 5, 0.5, 2),
    "range 60": Case((60.0, 30.5, 30.0, 0.0), 5, 10.0, 1),
    "range 60, two a round": Case((60.0, 30.5, 30.0, 0.0), 7, 10.0, 2),
    # A slow example ends every round, about e**60 times later than the next rings of the fast
    # examples. Times since the start of the race cannot represent those rings in float64.
    "range 60, a slow example ends each round": Case((60.0, 59.5, 59.0, 0.0), 6, 0.5, 4),
    "range 60, a slow example, remainder one": Case((60.0, 59.5, 59.0, 0.0), 5, 0.5, 4),
    # If 1e300 is subtracted first, the other scores become equal.
    "one giant": Case((1e300, 0.5, 0.0, -0.5), 5, 0.5, 2),
    "equal scores": Case((0.0, 0.0, 0.0), 5, 0.5, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_follow_the_exact_law_over_seeds(name: str) -> None:
    case = CASES[name]
    position = list(CASES).index(name)
    uids = random_uids(len(case.scores), np.random.default_rng(100 + position))
    scores = np.array(case.scores)
    first = 1_000_000 * position
    observed = tally(
        lambda seed: soft_cap_counts(
            scores, uids, case.num_samples, case.alpha, seed, batch_size=case.batch_size
        ),
        range(first, first + case.trials),
    )
    law = exact_soft_cap_distribution(scores, case.num_samples, case.alpha, case.batch_size)
    assert_follows(observed, law)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_counts_follow_the_exact_law_over_uids_at_one_seed(batch_size: int) -> None:
    rng = np.random.default_rng(7)
    scores = np.array(FOUR)
    observed = tally(
        lambda _: soft_cap_counts(
            scores, random_uids(len(scores), rng), 6, 0.5, seed=0, batch_size=batch_size
        ),
        range(4_000),
    )
    assert_follows(observed, exact_soft_cap_distribution(scores, 6, 0.5, batch_size))


def test_counts_follow_the_exact_law_over_consecutive_uids_at_one_seed() -> None:
    """Consecutive uids differ in few bits; their clocks must still be independent."""
    scores = np.array(FOUR)
    observed = tally(
        lambda trial: soft_cap_counts(
            scores, uid_array((0, 4 * trial + i) for i in range(4)), 6, 0.5, seed=3
        ),
        range(4_000),
    )
    assert_follows(observed, exact_soft_cap_distribution(scores, 6, 0.5, 1))


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(0, 0), (1, 0), (2, 0), (3, 0)],
        [(1, 2), (2, 1), (0, 3), (3, 0)],
        [(0, 2**63), (2**63, 0), (2**63, 2**63), (2**64 - 1, 2**64 - 1)],
    ],
    ids=["low half only", "high half only", "halves swapped", "top bits"],
)
def test_examples_with_similar_uids_are_independent(pairs: list[UidPair]) -> None:
    """With equal scores, a hash that mixes the uid's halves badly would correlate the examples."""
    scores, uids = np.zeros(4), uid_array(pairs)
    observed = tally(lambda seed: soft_cap_counts(scores, uids, 5, 0.5, seed), range(5_000))
    assert_follows(observed, exact_soft_cap_distribution(scores, 5, 0.5, 1))


def test_consecutive_seeds_are_independent() -> None:
    """Seed 2k with uid i + 1 must not give the clock of seed 2k + 1 with uid i."""
    scores, uids = np.zeros(3), uid_array((0, i) for i in range(3))
    single = exact_soft_cap_distribution(scores, 2, 0.5, 1)
    law = {a + b: p * q for a, p in single.items() for b, q in single.items()}
    observed = tally(
        lambda trial: np.concatenate(
            [soft_cap_counts(scores, uids, 2, 0.5, seed) for seed in (2 * trial, 2 * trial + 1)]
        ),
        range(5_000),
    )
    assert_follows(observed, law)


def test_penalty_is_not_lost_on_large_float32_scores() -> None:
    """Adjacent float32 numbers at 2**24 differ by 2, so subtracting 0.5 would be lost."""
    scores = np.array([2.0**24, 2.0**24 + 2, 2.0**24 + 2], dtype=np.float32)
    uids = random_uids(3, np.random.default_rng(8))
    observed = tally(lambda seed: soft_cap_counts(scores, uids, 7, 0.5, seed), range(4_000))
    assert_follows(observed, exact_soft_cap_distribution([0.0, 2.0, 2.0], 7, 0.5, 1))
    assert_rejected(observed, exact_soft_cap_distribution([0.0, 2.0, 2.0], 7, 0.0, 1))


# ------------------------------------------------------ the comparison rejects wrong laws


def penalty_at_once(
    scores: npt.NDArray[Any], num_samples: int, alpha: float, rng: np.random.Generator, size: int
) -> npt.NDArray[Any]:
    return naive_soft_cap(scores, num_samples, alpha, rng, batch_size=1)


def ring_inside_the_round_is_kept(
    scores: npt.NDArray[Any], num_samples: int, alpha: float, rng: np.random.Generator, size: int
) -> npt.NDArray[Any]:
    """A wrong law: clocks restart at their own ring, not at the end of the round."""
    counts, left = np.zeros(len(scores), dtype=int), num_samples
    rings = rng.exponential(size=len(scores)) / np.exp(scores)
    while left > 0:
        drawn = np.argsort(rings)[: min(size, left)]
        counts[drawn] += 1
        rings[drawn] += rng.exponential(size=len(drawn)) / np.exp(
            scores[drawn] - alpha * counts[drawn]
        )
        left -= len(drawn)
    return counts


def remainder_by_position(
    scores: npt.NDArray[Any], num_samples: int, alpha: float, rng: np.random.Generator, size: int
) -> npt.NDArray[Any]:
    """A wrong law: the last round is drawn in full, and its first positions are kept."""
    whole = num_samples // size * size
    counts = naive_soft_cap(scores, whole, alpha, rng, size)
    last = rng.choice(len(scores), size=size, replace=False, p=softmax(scores - alpha * counts))
    counts[np.sort(last)[: num_samples - whole]] += 1
    return counts


def penalty_of_four_fifths(
    scores: npt.NDArray[Any], num_samples: int, alpha: float, rng: np.random.Generator, size: int
) -> npt.NDArray[Any]:
    return naive_soft_cap(scores, num_samples, 0.8 * alpha, rng, size)


@pytest.mark.parametrize(
    "wrong",
    [
        with_replacement_inside_a_round,
        penalty_at_once,
        ring_inside_the_round_is_kept,
        remainder_by_position,
        penalty_of_four_fifths,
    ],
    ids=lambda law: law.__name__,
)
def test_a_wrong_law_is_rejected(wrong: Any) -> None:
    case = CASES["two a round, remainder one"]
    rng, scores = np.random.default_rng(11), np.array(case.scores)
    observed = tally(
        lambda _: wrong(scores, case.num_samples, case.alpha, rng, case.batch_size),
        range(case.trials),
    )
    law = exact_soft_cap_distribution(scores, case.num_samples, case.alpha, case.batch_size)
    assert_rejected(observed, law)


def test_rounds_of_two_and_of_one_are_told_apart() -> None:
    rng = np.random.default_rng(12)
    observed = tally(lambda _: naive_soft_cap(FOUR, 6, 0.5, rng, 2), range(4_000))
    assert_follows(observed, exact_soft_cap_distribution(FOUR, 6, 0.5, 2))
    assert_rejected(observed, exact_soft_cap_distribution(FOUR, 6, 0.5, 1))


def test_identical_clocks_for_similar_uids_are_rejected() -> None:
    """Two of four clocks are equal, as with a hash that ignores swapped halves."""
    rng, law = np.random.default_rng(13), exact_soft_cap_distribution(np.zeros(4), 5, 0.5, 1)

    def in_step(_: int) -> npt.NDArray[Any]:
        gaps = rng.exponential(size=(4, 5)) * np.exp(0.5 * np.arange(5))
        gaps[1] = gaps[0]
        rings = np.cumsum(gaps, axis=1)
        return np.bincount(np.argsort(rings, axis=None)[:5] // 5, minlength=4)

    assert_rejected(tally(in_step, range(5_000)), law)


def test_exact_laws_of_this_file_are_probabilities() -> None:
    for case in CASES.values():
        law = exact_soft_cap_distribution(
            case.scores, case.num_samples, case.alpha, case.batch_size
        )
        assert math.fsum(law.values()) == pytest.approx(1.0, abs=1e-12)
        # more than one outcome is likely, so the chi-square test is not trivial
        assert sum(p > 0.01 for p in law.values()) >= 2
