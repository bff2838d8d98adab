"""Searches sorted uids, whose halves are separate arrays: NumPy compares no 128-bit integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.threads import blocks, map_threads

_BLOCK = 1 << 16  # rows handled at once

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

    def locate(self, uids: NDArray[np.void], num_workers: int = 1) -> Positions:
        """Return the index of each uid of a `u8,u8` array [n], see `find_uids`."""
        return find_uids(self.high, self.low, uids, num_workers)


def find_uids(high: Hashes, low: Hashes, uids: NDArray[np.void], num_workers: int = 1) -> Positions:
    """Return the index of each uid in a sorted array of uids, -1 if it is not contained.

    Args:
        high, low: the halves of the sorted uids [M], M >= 1.
        uids: `u8,u8` array [n], in any order.
        num_workers: the number of threads.

    Returns:
        int32 array [n]; int64 if M is 2**31 or more.
    """
    order = argsort_uids(uids["f0"], uids["f1"], num_workers)
    positions: Positions = np.empty(len(uids), position_dtype(len(high)))

    def find(block: slice) -> None:
        rows = order[block]
        wanted = uids.take(rows)
        positions[rows] = _find_sorted(high, low, wanted["f0"].copy(), wanted["f1"].copy())

    map_threads(find, blocks(len(uids), _BLOCK), num_workers)
    return positions


def _find_sorted(
    high: Hashes, low: Hashes, wanted_high: Hashes, wanted_low: Hashes
) -> NDArray[np.int64]:
    """Return the index of each wanted uid, -1 if it is not contained. Both sides are sorted."""
    start = int(high.searchsorted(wanted_high[0]))
    rows = slice(start, start + len(wanted_high))
    if np.array_equal(high[rows], wanted_high) and np.array_equal(low[rows], wanted_low):
        return np.arange(rows.start, rows.stop)  # no uid of the range is missing on either side
    stop = int(high.searchsorted(wanted_high[-1], "right"))
    if start == stop:
        return np.full(len(wanted_high), -1)
    high, low = high[start:stop], low[start:stop]
    nearest = np.minimum(high.searchsorted(wanted_high), len(high) - 1)
    shared = np.flatnonzero((high[nearest] == wanted_high) & (low[nearest] < wanted_low))
    if len(shared):  # several uids share the first half
        nearest[shared] = _bisect(high, low, wanted_high[shared], wanted_low[shared])
    contained = (high[nearest] == wanted_high) & (low[nearest] == wanted_low)
    return np.where(contained, nearest + start, -1)


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


def sort_uids(high: Hashes, low: Hashes) -> NDArray[np.int64]:
    """Sort the pairs (high, low) in place; return the permutation that sorts them."""
    order = argsort_uids(high, low)
    high[:] = high.take(order)
    low[:] = low.take(order)
    return order


def sorted_halves(
    uids: NDArray[np.void], num_workers: int = 1
) -> tuple[Hashes, Hashes, NDArray[np.int64]]:
    """Return the halves of the sorted uids, two arrays [n], and the permutation that sorts them."""
    order = argsort_uids(uids["f0"], uids["f1"], num_workers)
    high, low = np.empty((2, len(uids)), np.uint64)

    def take(block: slice) -> None:
        part = uids.take(order[block])
        high[block], low[block] = part["f0"], part["f1"]

    map_threads(take, blocks(len(uids), _BLOCK), num_workers)
    return high, low, order


def position_dtype(length: int) -> np.dtype[np.signedinteger]:
    """Return int32 if it holds the indices of an array of this length, else int64."""
    return np.dtype(np.int32 if length < 2**31 else np.int64)


def argsort_uids(high: Hashes, low: Hashes, num_workers: int = 1) -> NDArray[np.int64]:
    """Return the permutation [n] that sorts the pairs (high, low); equal pairs keep their order.

    The leading bits of a uid and its row number are sorted as one integer, since NumPy sorts
    integers several times faster than it finds a permutation.
    """
    row_bits = max(len(high) - 1, 1).bit_length()
    row_mask = np.uint64((1 << row_bits) - 1)
    keys = high & ~row_mask
    parts = blocks(len(keys), _BLOCK)

    def number(block: slice) -> None:
        keys[block] |= np.arange(block.start, block.stop, dtype=np.uint64)

    def find_ties(block: slice) -> NDArray[np.intp]:
        start: int = block.start
        here, after = keys[block], keys[start + 1 : block.stop + 1]
        return np.flatnonzero((here[: len(after)] ^ after) <= row_mask) + start

    map_threads(number, parts, num_workers)
    keys.sort()
    ties = np.concatenate([np.empty(0, np.intp), *map_threads(find_ties, parts, num_workers)])
    keys &= row_mask
    order: NDArray[np.int64] = keys.view(np.int64)
    if len(ties):  # neighbours with the same leading bits, a few in a million of a hash
        tied = np.unique(np.concatenate([ties, ties + 1]))
        rows = order[tied]
        order[tied] = rows[np.lexsort((low[rows], high[rows]))]
    return order
