"""Rows of any order dealt to slices of the uid order, through files: sorting more than memory has.

A slice is a range of uids, of which several fit in memory; uids are hashes, so slices of as many
uids hold about as many rows. Rows are dealt first: a run, some rows in a file, is ordered by
slice. A slice then is a stretch of every run, and slices come in order.

A run is a line of JSON, its fields and the number of slices; where each slice ends; and the rows,
all of a row together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.open_file import readable
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.pool.uids import UID_DTYPE

_HIGH, _LOW = "uid_high", "uid_low"
_END = np.dtype("<i8")


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

    def take(self, rows: NDArray[np.signedinteger]) -> Rows:
        """Some of the rows."""
        columns = {name: values.take(rows) for name, values in self.columns.items()}
        return Rows(self.high.take(rows), self.low.take(rows), columns)

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
    fields = {_HIGH: rows.high, _LOW: rows.low, **rows.columns}
    found = np.empty(len(rows), [(str(n), one.dtype) for n, one in enumerate(fields.values())])
    for n, values in enumerate(fields.values()):
        found[str(n)] = values.take(order)
    del order
    kinds = [(name, values.dtype.str) for name, values in fields.items()]
    with atomic_write(path) as file:
        file.write(json.dumps({"fields": kinds, "slices": num_slices}).encode() + b"\n")
        file.write(np.cumsum(counts).astype(_END).data)
        file.write(found.data)
    return counts


def read_slice(runs: Sequence[Path], number: int) -> Rows:
    """The rows of one slice, in all runs; without a run, none and no columns."""
    parts = [Rows(np.empty(0, np.uint64), np.empty(0, np.uint64), {})] if not runs else []
    parts += [_read_part(run, number) for run in runs]
    return Rows.concatenate(parts)


def _read_part(run: Path, number: int) -> Rows:
    with readable(str(run), "run", "remove the whole --work_dir"), run.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # what lies behind a slice is another worker's
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        head = json.loads(file.readline())
        start, ends_size = file.tell(), head["slices"] * _END.itemsize
        before = min(number, 1)  # the end of the slice before is where this one begins
        ends = _read_items(file, start + (number - before) * _END.itemsize, before + 1, _END)
        begin, end = int(ends[0]) if before else 0, int(ends[-1])
        row = np.dtype([(str(n), kind) for n, (_, kind) in enumerate(head["fields"])])
        found = _read_items(file, start + ends_size + begin * row.itemsize, end - begin, row)
    columns = {name: found[str(n)] for n, (name, _) in enumerate(head["fields"])}
    return Rows(columns.pop(_HIGH), columns.pop(_LOW), columns)


def _read_items(file: IO[bytes], place: int, number: int, kind: np.dtype[Any]) -> NDArray[Any]:
    file.seek(place)
    content = file.read(number * kind.itemsize)
    if len(content) < number * kind.itemsize:
        raise InputError(f"{file.name} has been cut short: remove the whole --work_dir")
    return np.frombuffer(content, kind)
