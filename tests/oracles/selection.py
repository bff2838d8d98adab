"""Selects a DataComp subset from scores and uids, in plain Python integers and lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

UidPair = tuple[int, int]
UID_DTYPE = np.dtype("u8,u8")


def parse_uid(uid: str) -> UidPair:
    """Parse a uid of 32 hex digits as DataComp does: two unsigned 64-bit numbers, high first."""
    return int(uid[:16], 16), int(uid[16:32], 16)


def format_uid(pair: UidPair) -> str:
    """Format a pair as 32 lower-case hex digits."""
    return f"{pair[0]:016x}{pair[1]:016x}"


def uid_array(pairs: Iterable[UidPair]) -> npt.NDArray[Any]:
    """Convert pairs to an array of DataComp's dtype, in the same order."""
    return np.array([tuple(pair) for pair in pairs], dtype=UID_DTYPE)


def top_fraction(scores: Sequence[float], uids: Sequence[UidPair], fraction: float) -> list[int]:
    """Return 1 for the top ``int(fraction * M)`` examples, and 0 for the others.

    The order is by descending score, and by ascending uid for equal scores.
    """
    order = sorted(range(len(scores)), key=lambda row: (-float(scores[row]), uids[row]))
    kept = set(order[: int(fraction * len(scores))])
    return [int(row in kept) for row in range(len(scores))]


def top_fraction_keep_ties(scores: Sequence[float], fraction: float) -> list[int]:
    """Return 1 for each score >= the score at rank ``int(M * f)``, else 0, as DataComp does.

    Ranks count from zero, so at least ``int(M * f) + 1`` examples are kept. For f = 1 the rank is
    past the end, where DataComp's own code fails; here all examples are kept.
    """
    rank = int(len(scores) * fraction)
    if rank == len(scores):
        return [1] * len(scores)
    threshold = sorted((float(score) for score in scores), reverse=True)[rank]
    return [int(float(score) >= threshold) for score in scores]


def subset_array(uids: Sequence[UidPair], counts: Sequence[int]) -> npt.NDArray[Any]:
    """Repeat each uid by its count and sort them, as DataComp's resharder expects."""
    repeated: list[UidPair] = []
    for pair, count in zip(uids, counts, strict=True):
        repeated.extend([pair] * int(count))
    return uid_array(sorted(repeated))
