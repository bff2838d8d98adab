"""Searches sorted uids, whose halves are separate arrays: NumPy compares no 128-bit integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.uids import UID_DTYPE

Hashes = NDArray[np.uint64]

Positions = NDArray[np.signedinteger]
"""The index in a pool of each row of a file; -1 for rows that are not in the pool."""


@dataclass(frozen=True)
class UidHalves:
    """uids as two arrays.

    Attributes:
        high, low: the halves of the uids, uint64 [n].
    """

    high: Hashes
    low: Hashes

    def __len__(self) -> int:
        return len(self.high)

    @property
    def uids(self) -> NDArray[np.void]:
        """All uids as a new `u8,u8` array [n]."""
        return self.uids_of(slice(None))

    def uids_of(self, part: slice | NDArray[np.signedinteger]) -> NDArray[np.void]:
        """Return some of the uids as a new `u8,u8` array."""
        high = self.high[part]
        uids = np.empty(len(high), UID_DTYPE)
        uids["f0"], uids["f1"] = high, self.low[part]
        return uids


@dataclass(frozen=True)
class UidIndex(UidHalves):
    """Sorted uids without repeats, in which uids can be looked up.

    Forked processes share the arrays.
    """

    def find(self, uid: str) -> int:
        """Return the index of one uid (32 hexadecimal characters), -1 if it is not contained."""
        try:
            high, low = np.uint64(int(uid[:16], 16)), np.uint64(int(uid[16:], 16))
        except (ValueError, OverflowError):  # not a uid
            return -1
        row = int(self.high.searchsorted(high))
        # at most a few uids share their first half
        while row < len(self.high) and self.high[row] == high:
            if self.low[row] == low:
                return row if len(uid) == 32 else -1
            row += 1
        return -1

    def locate(self, uids: NDArray[np.void]) -> Positions:
        """Return the index of each uid of a `u8,u8` array [n], see `find_uids`."""
        return find_uids(self.high, self.low, uids)


def find_uids(high: Hashes, low: Hashes, uids: NDArray[np.void]) -> Positions:
    """Return the index of each uid in a sorted array of uids, -1 if it is not contained.

    Args:
        high, low: the halves of the sorted uids [M], M >= 1.
        uids: `u8,u8` array [n], in any order.

    Returns:
        int32 array [n]; int64 if M is 2**31 or more.
    """
    order = argsort_hashes(uids["f0"])  # sorted queries access memory sequentially
    wanted_high, wanted_low = uids["f0"].take(order), uids["f1"].take(order)
    nearest = np.searchsorted(high, wanted_high)
    np.minimum(nearest, len(high) - 1, out=nearest)
    shared = np.flatnonzero((high[nearest] == wanted_high) & (low[nearest] < wanted_low))
    if len(shared):  # several uids share the first half
        nearest[shared] = _bisect(high, low, wanted_high[shared], wanted_low[shared])
    contained = (high[nearest] == wanted_high) & (low[nearest] == wanted_low)
    positions: Positions = np.empty(len(uids), position_dtype(len(high)))
    positions[order] = np.where(contained, nearest, -1)
    return positions


def _bisect(high: Hashes, low: Hashes, wanted_high: Hashes, wanted_low: Hashes) -> NDArray[np.intp]:
    """Return the index of the first pair that is not below each wanted pair."""
    first = np.searchsorted(high, wanted_high, "left")
    last = np.searchsorted(high, wanted_high, "right")
    while (first < last).any():
        middle = (first + last) // 2
        below = (first < last) & (low[np.minimum(middle, len(high) - 1)] < wanted_low)
        last = np.where(below, last, np.where(first < last, middle, last))
        first = np.where(below, middle + 1, first)
    return np.minimum(first, len(high) - 1)


def sort_uids(high: Hashes, low: Hashes) -> NDArray[np.signedinteger]:
    """Sort the pairs (high, low) in place; return the permutation that sorts them."""
    order = argsort_hashes(high)
    in_order = high.take(order)
    if np.any(in_order[1:] == in_order[:-1]):  # `low` decides between equal first halves
        order = np.lexsort((low, high)).astype(order.dtype)
        in_order = high.take(order)
    high[:] = in_order
    low[:] = low.take(order)
    return order


def position_dtype(length: int) -> np.dtype[np.signedinteger]:
    """Return int32 if it holds the indices of an array of this length, else int64."""
    return np.dtype(np.int32 if length < 2**31 else np.int64)


def argsort_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.signedinteger]:
    """Return the permutation [n] that sorts uniformly distributed integers, as uids are.

    A radix sort by the first 16 bits nearly sorts them, so that the final sort stays within a
    core's cache. It also sorts other integers, more slowly.
    """
    leading = (hashes >> np.uint64(48)).astype(np.uint16)
    order = np.argsort(leading, kind="stable").astype(position_dtype(len(hashes)))
    del leading
    return order.take(np.argsort(hashes.take(order), kind="stable"))
