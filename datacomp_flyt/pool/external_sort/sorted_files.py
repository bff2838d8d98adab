"""External sort and merge of a pool's uids and score columns, for pools larger than memory.

First, rows are partitioned into buckets, ranges of uids (see `uid_buckets`), some files at a time.
Then each bucket is sorted and joined, and its part of every result array is written. Both kinds of
work can be done in any order, by any worker, and repeatedly; `sort_job` records what is done, so
that a killed sort resumes.
"""

from __future__ import annotations

import functools
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.engines.engine import Engine, TaskFactory
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.memmap_arrays import create_array, write_rows
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.pool.external_sort.file_group import FileGroup
from datacomp_flyt.pool.external_sort.sort_job import Faults, Layout
from datacomp_flyt.pool.external_sort.uid_buckets import Rows, read_bucket, write_run
from datacomp_flyt.pool.pool import describe_left_out
from datacomp_flyt.pool.row_order import RowOrder
from datacomp_flyt.pool.uid_search import find_uids, sort_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.streams import say

ROWS = 1 << 21
"""Rows in a run; a bucket has about the same number. A worker needs memory for a few times that."""

_MOST_BUCKETS = 1 << 16
_MOST_ROWS = 8 * ROWS  # rows of the largest bucket that is sorted
_RETRIES = 2


@dataclass(frozen=True)
class SortedFiles:
    """The result of an external sort: memory-mapped arrays.

    Attributes:
        uids: `u8,u8` array [M], sorted.
        columns: float arrays [M]; the key is (group index, column name). NaN for a missing score.
    """

    uids: NDArray[np.void]
    columns: Mapping[tuple[int, str], NDArray[np.floating]]


def sort_into_files(
    groups: Sequence[FileGroup],
    folder: Path,
    engine: Engine,
    allow_partial: bool,
    drop_nonfinite: bool,
    rows_at_once: int = ROWS,
) -> SortedFiles:
    """Sort a pool, and join the columns of other files to its examples.

    Args:
        groups: the files to sort; the first group is the pool's metadata, with or without columns.
        folder: the folder of the job; a job that was killed there resumes.
        engine: the engine; its workers must see the files and the folder.
        allow_partial: accept examples without a score.
        drop_nonfinite: accept scores that are not finite.
        rows_at_once: the number of rows of a run, and about that of a bucket.

    Raises:
        InputError: see `read_pool` and `ScoreTable.read`; or the folder belongs to another job, or
            the disk is full.
    """
    pool = groups[0]
    if not pool.num_rows:
        raise InputError(f"{pool.name} holds no example: all files are empty")
    most_rows = max(group.num_rows for group in groups)  # a table may be of a larger pool
    layout = Layout(folder, groups, min(-(-most_rows // rows_at_once), _MOST_BUCKETS))
    layout.check_job(rows_at_once)
    if pool.available is not None:  # workers open the list as a file
        available = pool.available.in_file(folder / "available.npy")
        groups = [g if g.available is None else replace(g, available=available) for g in groups]
        layout = replace(layout, groups=groups)
    with engine:
        partitions = _partition_all(layout, engine, rows_at_once)
        pool_size = int(partitions[0].num_rows.sum())
        if left_out := describe_left_out(pool.name, pool.shards, pool_size, pool.available):
            say(left_out)
        faults = _sort_all(layout, engine, partitions)
    layout.raise_faults(faults, pool_size, allow_partial, drop_nonfinite)
    for run in (folder / "partitioned").glob("*"):
        run.unlink()
    return SortedFiles(
        np.load(layout.uids, mmap_mode="r"),
        {key: np.load(path, mmap_mode="r") for key, path in layout.columns().items()},
    )


@dataclass(frozen=True)
class Partition:
    """The runs of a group, and the number of rows of each bucket in them [num_buckets]."""

    runs: list[Path]
    num_rows: NDArray[np.int64]


def _partition_all(layout: Layout, engine: Engine, rows: int) -> list[Partition]:
    """Write the runs of each group."""
    items: dict[str, FileGroup] = {}
    for index, group in enumerate(layout.groups):
        for part_index, part in enumerate(group.parts(rows)):
            items[f"{index}-{part_index:06d}"] = part
    left = {key: part for key, part in items.items() if not layout.marker(key).exists()}
    make = functools.partial(_make_partitioner, layout.folder, layout.num_buckets, rows)
    num_rows = {key: part.num_rows for key, part in left.items()}
    _run(engine, make, left, "partitioning", layout, num_rows)
    partitions = [Partition([], np.zeros(layout.num_buckets, np.int64)) for _ in layout.groups]
    for key in items:
        partition = partitions[int(key.split("-")[0])]
        for run_index, counts in enumerate(layout.read_marker(key)):
            partition.runs.append(layout.run(key, run_index))
            partition.num_rows[:] += counts
    return partitions


def _sort_all(layout: Layout, engine: Engine, partitions: Sequence[Partition]) -> Faults:
    """Sort every bucket, and return the faults of all buckets."""
    for group, partition in zip(layout.groups, partitions, strict=True):
        _check_even(group, partition.num_rows)
    rows = partitions[0].num_rows
    ends = np.cumsum(rows)
    arrays = {layout.uids: UID_DTYPE}
    for (index, name), path in layout.columns().items():
        arrays[path] = layout.groups[index].columns[name]
    items = {
        f"bucket-{bucket:05d}": (bucket, int(ends[bucket] - rows[bucket]))
        for bucket in range(layout.num_buckets)
    }
    left = {key: item for key, item in items.items() if not layout.marker(key).exists()}
    for path, dtype in arrays.items():
        if not path.exists():
            if len(left) < len(items):  # part of the array was written
                raise InputError(f"{path} is gone: remove --work_dir {layout.folder} too")
            create_array(path, int(ends[-1]), dtype)
    make = functools.partial(_make_sorter, layout, [partition.runs for partition in partitions])
    num_rows = {key: int(rows[bucket]) for key, (bucket, _) in left.items()}
    _run(engine, make, left, "sorting", layout, num_rows)
    faults: Faults = {}
    for key in items:
        for kind, (count, uid) in layout.read_marker(key).items():
            total, first = faults.get(kind, (0, uid))
            faults[kind] = (total + count, min(first, uid))
    return faults


def _check_even(group: FileGroup, rows: NDArray[np.int64]) -> None:
    """Raise InputError if a bucket has more rows than a worker may have in memory."""
    largest = int(rows.argmax())
    if rows[largest] > _MOST_ROWS:
        raise InputError(
            f"{group.name} has {int(rows[largest]):,} rows in one of {len(rows):,} equal ranges of "
            "uids, and --work_dir sorts a range at a time: uids are hashes, as DataComp's are, and "
            "of each example there is one row; leave --work_dir out to sort others in memory"
        )


def _run(
    engine: Engine,
    make: TaskFactory,
    items: Mapping[str, Any],
    label: str,
    layout: Layout,
    num_rows: Mapping[str, int],
) -> None:
    def write(key: str, result: Any) -> int:
        layout.write_marker(key, result)
        return num_rows[key]

    if not items:
        return
    probe = layout.folder / "partitioned" / f"of-{uuid.uuid4().hex}"
    with atomic_write(probe):
        pass
    try:
        make = functools.partial(_make_in_folder, probe, make)
        errors = run_shards(engine, make, items, write, _RETRIES, label, num_rows, give_up=True)
    finally:
        probe.unlink(missing_ok=True)
    for error in errors.values():
        if isinstance(error, InputError):
            raise error
        raise InputError(f"{label} failed: {error}: run the same command again")


def _make_in_folder(probe: Path, make: TaskFactory, device: str) -> Callable[[Any], Any]:
    """Call `make` if this worker sees the driver's folder: other nodes may have another one."""
    if not probe.exists():
        raise InputError(
            f"--work_dir {probe.parents[1]} is not the same folder on {socket.gethostname()}, "
            "where a worker runs: name one on a disk that all nodes share"
        )
    return make(device)


def _make_partitioner(
    folder: Path, num_buckets: int, rows: int, device: str
) -> Callable[[Any], Any]:
    layout = Layout(folder, (), num_buckets)

    def partition(item: tuple[str, FileGroup]) -> list[list[int]]:
        key, group = item
        counts = list[list[int]]()
        for run in _runs(group.batches(), rows):
            counts.append(write_run(layout.run(key, len(counts)), run, num_buckets).tolist())
            del run  # freed before the next run is read
        return counts

    return partition


def _runs(batches: Iterator[Rows], rows: int) -> Iterator[Rows]:
    """Join batches to runs of at least `rows` rows; the last run may be smaller."""
    parts, total = list[Rows](), 0
    for batch in filter(len, batches):
        parts.append(batch)
        total += len(batch)
        if total >= rows:
            run = Rows.concatenate(parts)
            parts, total = [], 0  # freed before the run is written
            yield run
            del run
    if parts:
        yield Rows.concatenate(parts)


def _make_sorter(
    layout: Layout, runs: Sequence[Sequence[Path]], device: str
) -> Callable[[Any], Any]:
    def sort(item: tuple[str, tuple[int, int]]) -> Faults:
        _, (bucket, start) = item
        return sort_bucket(layout, runs, bucket, start)

    return sort


def sort_bucket(layout: Layout, runs: Sequence[Sequence[Path]], bucket: int, start: int) -> Faults:
    """Sort a bucket and write its part of each array; return its faults.

    Args:
        layout: the job.
        runs: the runs of each group.
        bucket: the index of the bucket.
        start: the index of the bucket's first uid in the arrays.
    """
    rows = read_bucket(runs[0], bucket)
    order = sort_uids(rows.high, rows.low)
    uids = rows.uids
    write_rows(layout.uids, start, uids)
    faults: Faults = {}
    same = (rows.high[1:] == rows.high[:-1]) & (rows.low[1:] == rows.low[:-1])
    _add_fault(faults, "twice", uids[1:], same)
    paths = layout.columns()
    for index in range(len(layout.groups)):
        if index:
            values, counts = _join(rows, read_bucket(runs[index], bucket))
        else:
            values = {name: column.take(order) for name, column in rows.columns.items()}
            counts = np.ones(len(rows), np.int64)
        _add_fault(faults, f"repeated {index}", uids, counts > 1)
        _add_fault(faults, f"missing {index}", uids, counts == 0)
        for name, column in values.items():
            finite = np.isfinite(column)
            _add_fault(faults, f"not finite {index} {name}", uids, ~finite & (counts > 0))
            column[~finite] = np.nan
            write_rows(paths[index, name], start, column)
    return faults


def _join(pool: Rows, rows: Rows) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.int64]]:
    """Join rows to the m sorted uids of a pool.

    Returns:
        the columns [m], NaN for a uid without a row; and the number of rows of each uid [m].
    """
    if not len(pool):
        return {name: column[:0] for name, column in rows.columns.items()}, np.zeros(0, np.int64)
    positions = find_uids(pool.high, pool.low, rows.uids)
    if len(known := np.flatnonzero(positions >= 0)) < len(positions):
        rows, positions = rows.take(known), positions[known]
    order = RowOrder(len(pool), positions)
    values = {name: order.to_pool(column, np.nan, 1) for name, column in rows.columns.items()}
    return values, np.bincount(positions, minlength=len(pool))


def _add_fault(faults: Faults, kind: str, uids: NDArray[np.void], wrong: NDArray[np.bool_]) -> None:
    """Count the faulty uids among sorted ones, and note the smallest."""
    if wrong.any():
        faults[kind] = (int(np.count_nonzero(wrong)), format_uid(uids[int(wrong.argmax())]))
