"""From scores and uids to a DataComp subset, in plain Python integers and lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

UidPair = tuple[int, int]
UID_DTYPE = np.dtype("u8,u8")


def parse_uid(uid: str) -> UidPair:
    """DataComp's reading of a uid of 32 hex digits: two unsigned 64-bit numbers, high first."""
    return int(uid[:16], 16), int(uid[16:32], 16)


def format_uid(pair: UidPair) -> str:
    """The 32 lower-case hex digits of a pair."""
    return f"{pair[0]:016x}{pair[1]:016x}"


def uid_array(pairs: Iterable[UidPair]) -> npt.NDArray[Any]:
    """The pairs as DataComp's array type, in the order given."""
    return np.array([tuple(pair) for pair in pairs], dtype=UID_DTYPE)


def top_fraction(scores: Sequence[float], uids: Sequence[UidPair], fraction: float) -> list[int]:
    """0/1 for each example: exactly ``int(fraction * M)`` ones.

    Higher scores first; among equal scores the smaller uid first.
    """
    order = sorted(range(len(scores)), key=lambda row: (-float(scores[row]), uids[row]))
    kept = set(order[: int(fraction * len(scores))])
    return [int(row in kept) for row in range(len(scores))]


def top_fraction_keep_ties(scores: Sequence[float], fraction: float) -> list[int]:
    """0/1 for each example by DataComp's rule: every score >= the one at rank ``int(M * f)``.

    The rank counts from zero, so at least ``int(M * f) + 1`` are kept. At f = 1 that rank is one
    past the end (DataComp's own code fails there), and everything is kept.
    """
    rank = int(len(scores) * fraction)
    if rank == len(scores):
        return [1] * len(scores)
    threshold = sorted((float(score) for score in scores), reverse=True)[rank]
    return [int(float(score) >= threshold) for score in scores]


def subset_array(uids: Sequence[UidPair], counts: Sequence[int]) -> npt.NDArray[Any]:
    """Each uid as often as it is drawn, sorted: what DataComp's resharder reads."""
    repeated: list[UidPair] = []
    for pair, count in zip(uids, counts, strict=True):
        repeated.extend([pair] * int(count))
    return uid_array(sorted(repeated))
