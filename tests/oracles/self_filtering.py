"""Subsets and cross-fitted scores in plain Python, one pair at a time.

Random bits come from SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), keyed by seed and uid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from tests.oracles.selection import UidPair, top_fraction

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64
SHARES = int.from_bytes(b"shares\0", "big")
HALVES = int.from_bytes(b"halves\0", "big")


def finalise(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % WORD
    return bits ^ (bits >> 31)


def bits_of(uid: UidPair, seed: int, draw: int) -> int:
    """Return output `draw` of the random stream of (seed, uid)."""
    key = finalise((uid[1] + seed * GOLDEN + GOLDEN) % WORD)
    key = finalise(((key ^ uid[0]) + GOLDEN) % WORD)
    return finalise((key + (draw + 1) * GOLDEN) % WORD)


def spread(draws: int, uids: Sequence[UidPair], seed: int, draw: int) -> dict[UidPair, int]:
    """Divide draws evenly; the remainder goes to the uids with the lowest (bits, uid)."""
    counts = {uid: draws // len(uids) for uid in uids}
    chosen = sorted(uids, key=lambda uid: (bits_of(uid, seed ^ SHARES, draw), uid))
    for uid in chosen[: draws % len(uids)]:
        counts[uid] += 1
    return counts


def subset_counts(
    scores: Sequence[float],
    uids: Sequence[UidPair],
    draws: int,
    confident_fraction: float,
    random_share: float,
    round_index: int,
    seed: int,
) -> list[int]:
    """Return the draw counts of a round's subset."""
    random_draws = round(Fraction(random_share) * draws)
    counts = spread(random_draws, uids, seed, 2 * round_index + 1)
    if random_draws < draws:
        low = [-math.inf if math.isnan(score) else score for score in scores]
        kept = top_fraction(low, uids, confident_fraction)
        confident = [uid for uid, keep in zip(uids, kept, strict=True) if keep]
        for uid, count in spread(draws - random_draws, confident, seed, 2 * round_index).items():
            counts[uid] += count
    return [counts[uid] for uid in uids]


def first_half(uid: UidPair, seed: int) -> bool:
    return bits_of(uid, seed ^ HALVES, 0) < WORD // 2


def cross_fitted(
    by_a: Sequence[float], by_b: Sequence[float], halves: Sequence[str], memorisation: bool
) -> list[float]:
    """Score pairs of half "a" or "b"; the half is "" if neither model has seen the pair."""
    a, b = (_standardized(values) for values in (by_a, by_b))
    scores, gains = [], []
    for score_a, score_b, half in zip(a, b, halves, strict=True):
        seen, unseen = {
            "a": (score_a, score_b),
            "b": (score_b, score_a),
            "": (None, (score_a + score_b) / 2),
        }[half]
        scores.append(unseen)
        gains.append(None if seen is None else seen - unseen)
    if memorisation:
        known = [gain for gain in gains if gain is not None]
        mean_gain = sum(known) / len(known)
        scores = [
            score - (0 if gain is None else gain - mean_gain)
            for score, gain in zip(scores, gains, strict=True)
        ]
    return scores


def _standardized(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / spread for value in values]
