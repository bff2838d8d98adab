"""Rows of any order dealt to slices of the uid order, through files: sorting more than memory has.

A slice is a range of uids, of which several fit in memory; uids are hashes, so slices of as many
uids hold about as many rows. Rows are dealt first: a run, some rows in a file, is ordered by
slice. A slice then is a stretch of every run, and slices come in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from datacomp_flyt.pool.subset import atomic_write
from datacomp_flyt.pool.uids import UID_DTYPE

_HIGH, _LOW, _ENDS = "uid_high", "uid_low", "slice_ends"


@dataclass(frozen=True)
class Rows:
    """Rows in any order.

    Attributes:
        high, low: the halves of their uids, uint64 [n].
        columns: values by name, [n] each.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    columns: Mapping[str, NDArray[np.floating]]

    def __len__(self) -> int:
        return len(self.high)

    @property
    def uids(self) -> NDArray[np.void]:
        """As a new `u8,u8` array [n]."""
        uids = np.empty(len(self), UID_DTYPE)
        uids["f0"], uids["f1"] = self.high, self.low
        return uids

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """One after the other; one part at least."""
        return cls(
            np.concatenate([part.high for part in parts]),
            np.concatenate([part.low for part in parts]),
            {
                name: np.concatenate([part.columns[name] for part in parts])
                for name in parts[0].columns
            },
        )


def slices_of(high: NDArray[np.uint64], num_slices: int) -> NDArray[np.uint16]:
    """The slice [n] of uids with these first halves; a larger uid's is no smaller.

    Args:
        high: uint64 [n].
        num_slices: at most 65,536.
    """
    return ((high >> np.uint64(32)) * np.uint64(num_slices) >> np.uint64(32)).astype(np.uint16)


def write_run(path: Path, rows: Rows, num_slices: int) -> NDArray[np.int64]:
    """Write rows ordered by slice.

    Returns:
        how many rows each slice has [num_slices].

    Raises:
        InputError: the disk is full.
    """
    slices = slices_of(rows.high, num_slices)
    order = np.argsort(slices, kind="stable")  # a radix sort
    counts = np.bincount(slices, minlength=num_slices)
    del slices
    arrays = {_HIGH: rows.high, _LOW: rows.low, **rows.columns}
    arrays = {name: values.take(order) for name, values in arrays.items()}
    del order
    with atomic_write(path) as file:
        file.write(save({**arrays, _ENDS: np.cumsum(counts)}))
    return counts


def read_slice(runs: Sequence[Path], number: int) -> Rows:
    """The rows of one slice, in all runs; without a run, none and no columns."""
    parts = [Rows(np.empty(0, np.uint64), np.empty(0, np.uint64), {})] if not runs else []
    for run in runs:
        with safe_open(run, "numpy") as file:
            ends = file.get_slice(_ENDS)[max(number - 1, 0) : number + 1].tolist()
            begin, end = ends[0] if number else 0, ends[-1]
            # safetensors refuses to read nothing behind the last row
            part = slice(begin, end) if begin < end else slice(1)
            names = [name for name in file.keys() if name != _ENDS]  # noqa: SIM118
            found = {name: file.get_slice(name)[part][: end - begin] for name in names}
        parts.append(Rows(found.pop(_HIGH), found.pop(_LOW), found))
    return Rows.concatenate(parts)
