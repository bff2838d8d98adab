"""External bucket sort: rows are partitioned on disk into ranges of uids.

A bucket is a range of uids whose rows fit in memory. uids are hashes, so ranges of equal width hold
about equally many rows. Partitioning writes runs: files of some rows, ordered by bucket. The rows
of a bucket are then a contiguous part of every run, and buckets are sorted one after another.

A run consists of a line of JSON (the fields of a row and the number of buckets), the end of each
bucket, and the rows, with all fields of a row together.
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
from datacomp_flyt.pool.uid_search import UidHalves

_HIGH, _LOW = "uid_high", "uid_low"
_END = np.dtype("<i8")


@dataclass(frozen=True)
class Rows(UidHalves):
    """Rows in any order.

    Attributes:
        high, low: the halves of the rows' uids, uint64 [n].
        columns: arrays [n] by name.
    """

    columns: Mapping[str, NDArray[np.floating]]

    def take(self, rows: NDArray[np.signedinteger]) -> Rows:
        """Return the rows with these indices."""
        columns = {name: values.take(rows) for name, values in self.columns.items()}
        return Rows(self.high.take(rows), self.low.take(rows), columns)

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate one or more parts."""
        return cls(
            np.concatenate([part.high for part in parts]),
            np.concatenate([part.low for part in parts]),
            {
                name: np.concatenate([part.columns[name] for part in parts])
                for name in parts[0].columns
            },
        )


def bucket_numbers(high: NDArray[np.uint64], num_buckets: int) -> NDArray[np.uint16]:
    """Return the bucket [n] of each uid; it never decreases as the uid increases.

    Args:
        high: the first halves of the uids, uint64 [n].
        num_buckets: the number of buckets, at most 65,536.
    """
    return ((high >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.uint16)


def write_run(path: Path, rows: Rows, num_buckets: int) -> NDArray[np.int64]:
    """Write rows to a run, ordered by bucket.

    Returns:
        the number of rows in each bucket [num_buckets].

    Raises:
        InputError: the disk is full.
    """
    buckets = bucket_numbers(rows.high, num_buckets)
    order = np.argsort(buckets, kind="stable")  # a radix sort
    counts = np.bincount(buckets, minlength=num_buckets)
    del buckets
    fields = {_HIGH: rows.high, _LOW: rows.low, **rows.columns}
    row = [(str(n), values.dtype) for n, values in enumerate(fields.values())]
    table = np.empty(len(rows), row)
    for n, values in enumerate(fields.values()):
        table[str(n)] = values.take(order)
    del order
    types = [(name, values.dtype.str) for name, values in fields.items()]
    with atomic_write(path) as file:
        file.write(json.dumps({"fields": types, "buckets": num_buckets}).encode() + b"\n")
        file.write(np.cumsum(counts).astype(_END).data)
        file.write(table.data)
    return counts


def read_bucket(runs: Sequence[Path], bucket: int) -> Rows:
    """Read the rows of one bucket from all runs; without runs, no rows and no columns."""
    parts = [Rows(np.empty(0, np.uint64), np.empty(0, np.uint64), {})] if not runs else []
    parts += [_read_part(run, bucket) for run in runs]
    return Rows.concatenate(parts)


def _read_part(run: Path, bucket: int) -> Rows:
    with readable(str(run), "run", "remove the whole --work_dir"), run.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # no read-ahead: the next bucket is another worker's
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        head = json.loads(file.readline())
        start, ends_size = file.tell(), head["buckets"] * _END.itemsize
        previous = min(bucket, 1)  # 1 if there is a bucket before, which ends where this begins
        ends = _read_items(file, start + (bucket - previous) * _END.itemsize, previous + 1, _END)
        begin, end = int(ends[0]) if previous else 0, int(ends[-1])
        row = np.dtype([(str(n), kind) for n, (_, kind) in enumerate(head["fields"])])
        table = _read_items(file, start + ends_size + begin * row.itemsize, end - begin, row)
    columns = {name: table[str(n)] for n, (name, _) in enumerate(head["fields"])}
    return Rows(columns.pop(_HIGH), columns.pop(_LOW), columns)


def _read_items(file: IO[bytes], offset: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    file.seek(offset)
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise InputError(f"{file.name} has been cut short: remove the whole --work_dir")
    return np.frombuffer(content, dtype)
