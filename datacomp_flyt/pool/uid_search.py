"""Where uids are in a sorted array of them, whose halves are kept apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

Positions = NDArray[np.signedinteger]
"""Where the rows of a file are in a pool: an index for each, -1 for none."""


@dataclass(frozen=True)
class UidIndex:
    """Sorted uids, each of which is a row of something. Plain arrays: forked processes share them.

    Attributes:
        high, low: the halves of the uids, uint64 [M], sorted as pairs, no pair twice.
    """

    high: Hashes
    low: Hashes

    def __len__(self) -> int:
        return len(self.high)

    def find(self, uid: str) -> int:
        """The row of one uid (32 hexadecimal characters), -1 where it has none."""
        try:
            high, low = np.uint64(int(uid[:16], 16)), np.uint64(int(uid[16:], 16))
        except (ValueError, OverflowError):  # no uid at all
            return -1
        row = int(self.high.searchsorted(high))
        # a few uids at most share their first half
        while row < len(self.high) and self.high[row] == high:
            if self.low[row] == low:
                return row if len(uid) == 32 else -1
            row += 1
        return -1


def find_uids(high: Hashes, low: Hashes, uids: NDArray[np.void]) -> Positions:
    """Index of each uid, -1 where it is not there.

    Args:
        high, low: halves of the uids to search, sorted as pairs [M], M >= 1.
        uids: `u8,u8` array [n], in any order.

    Returns:
        int32 array [n], int64 for 2**31 and more.
    """
    order = argsort_hashes(uids["f0"])  # sorted questions walk through the array, not across it
    wanted_high, wanted_low = uids["f0"].take(order), uids["f1"].take(order)
    places = np.searchsorted(high, wanted_high)
    np.minimum(places, len(high) - 1, out=places)
    behind = np.flatnonzero((high[places] == wanted_high) & (low[places] < wanted_low))
    if len(behind):  # first halves that several uids share
        places[behind] = _bisect(high, low, wanted_high[behind], wanted_low[behind])
    there = (high[places] == wanted_high) & (low[places] == wanted_low)
    positions: Positions = np.empty(len(uids), position_dtype(len(high)))
    positions[order] = np.where(there, places, -1)
    return positions


def _bisect(high: Hashes, low: Hashes, wanted_high: Hashes, wanted_low: Hashes) -> NDArray[np.intp]:
    """Places of the wanted pairs, or of what stands where they would."""
    first = np.searchsorted(high, wanted_high, "left")
    last = np.searchsorted(high, wanted_high, "right")
    while (first < last).any():
        middle = (first + last) // 2
        below = (first < last) & (low[np.minimum(middle, len(high) - 1)] < wanted_low)
        last = np.where(below, last, np.where(first < last, middle, last))
        first = np.where(below, middle + 1, first)
    return np.minimum(first, len(high) - 1)


def position_dtype(length: int) -> np.dtype[np.signedinteger]:
    """The smaller of two types that number so many examples."""
    return np.dtype(np.int32 if length < 2**31 else np.int64)


def argsort_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.signedinteger]:
    """The permutation [n] that sorts numbers which are evenly spread, as uids are as a rule.

    Dealt to 65,536 heaps by their first bits (a radix sort), they are nearly in order, and what is
    left of sorting stays within a core's cache. Uneven numbers only take longer.
    """
    heaps = (hashes >> np.uint64(48)).astype(np.uint16)
    order = np.argsort(heaps, kind="stable").astype(position_dtype(len(hashes)))
    del heaps
    return order.take(np.argsort(hashes.take(order), kind="stable"))
