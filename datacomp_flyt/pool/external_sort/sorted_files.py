"""A pool's uids and score columns in files, in the order of the uids, whatever the memory.

Rows are dealt to slices of the uid order (`uid_slices`), some files at a time; then slices are
sorted and joined, one at a time, into one array a column. Both kinds of work may be done in any
order, by any worker, and again: the folder notes what need not be (`sort_job`).
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
from datacomp_flyt.pool.external_sort.uid_slices import Rows, read_slice, write_run
from datacomp_flyt.pool.pool import describe_left_out, sort_uids
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.streams import say

ROWS = 1 << 21
"""Of a run, and about as many of a slice: what a worker has in memory, a few times over."""

_MOST_SLICES = 1 << 16
_MOST_ROWS = 8 * ROWS  # of a slice, that are sorted at all
_RETRIES = 2


@dataclass(frozen=True)
class SortedFiles:
    """Arrays in files.

    Attributes:
        uids: `u8,u8` array [M], sorted.
        columns: by number of the group and name, floats [M]; NaN where there is no number.
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
    """Sort a pool, and join to it what other files have of its examples.

    Args:
        groups: the pool's own files first, with or without columns.
        folder: of the arrays; what was done there before for the same files is not done again.
        engine: its workers see the files and the folder.
        allow_partial, drop_nonfinite: accept examples without a score, or without a finite one.
        rows_at_once: of a run and a slice.

    Raises:
        InputError: as of `read_pool` and `ScoreTable.read`; another job's folder; a full disk.
    """
    pool = groups[0]
    if not pool.num_rows:
        raise InputError(f"{pool.name} holds no example: all files are empty")
    most_rows = max(group.num_rows for group in groups)  # a table may be of a larger pool
    layout = Layout(folder, groups, min(-(-most_rows // rows_at_once), _MOST_SLICES))
    layout.check_job(rows_at_once)
    if pool.available is not None:  # workers open it as a file
        available = pool.available.in_file(folder / "available.npy")
        groups = [g if g.available is None else replace(g, available=available) for g in groups]
        layout = replace(layout, groups=groups)
    with engine:
        dealt = _deal_all(layout, engine, rows_at_once)
        pool_size = int(dealt[0].num_rows.sum())
        if left_out := describe_left_out(pool.name, pool.shards, pool_size, pool.available):
            say(left_out)
        faults = _sort_all(layout, engine, dealt)
    layout.raise_faults(faults, pool_size, allow_partial, drop_nonfinite)
    for run in (folder / "partitioned").glob("*"):
        run.unlink()
    return SortedFiles(
        np.load(layout.uids, mmap_mode="r"),
        {key: np.load(path, mmap_mode="r") for key, path in layout.columns().items()},
    )


@dataclass(frozen=True)
class Dealt:
    """What became of a group: its runs, and how many rows each slice has in them [num_slices]."""

    runs: list[Path]
    num_rows: NDArray[np.int64]


def _deal_all(layout: Layout, engine: Engine, rows: int) -> list[Dealt]:
    """Write the runs of each group."""
    items: dict[str, FileGroup] = {}
    for place, group in enumerate(layout.groups):
        for number, part in enumerate(group.parts(rows)):
            items[f"{place}-{number:06d}"] = part
    left = {key: part for key, part in items.items() if not layout.marker(key).exists()}
    make = functools.partial(_dealer, layout.folder, layout.num_slices, rows)
    num_rows = {key: part.num_rows for key, part in left.items()}
    _run(engine, make, left, "partitioning", layout, num_rows)
    found = [Dealt([], np.zeros(layout.num_slices, np.int64)) for _ in layout.groups]
    for key in items:
        dealt = found[int(key.split("-")[0])]
        for number, counts in enumerate(layout.read_marker(key)):
            dealt.runs.append(layout.run(key, number))
            dealt.num_rows[:] += counts
    return found


def _sort_all(layout: Layout, engine: Engine, dealt: Sequence[Dealt]) -> Faults:
    """Sort every slice; what is wrong in any of them."""
    for group, of in zip(layout.groups, dealt, strict=True):
        _check_even(group, of.num_rows)
    rows = dealt[0].num_rows
    ends = np.cumsum(rows)
    arrays = {layout.uids: UID_DTYPE}
    for (place, name), path in layout.columns().items():
        arrays[path] = layout.groups[place].columns[name]
    items = {
        f"slice-{number:05d}": (number, int(ends[number] - rows[number]))
        for number in range(layout.num_slices)
    }
    left = {key: item for key, item in items.items() if not layout.marker(key).exists()}
    for path, dtype in arrays.items():
        if not path.exists():
            if len(left) < len(items):  # some of it was there
                raise InputError(f"{path} is gone: remove --work_dir {layout.folder} too")
            create_array(path, int(ends[-1]), dtype)
    make = functools.partial(_sorter, layout, [of.runs for of in dealt])
    num_rows = {key: int(rows[number]) for key, (number, _) in left.items()}
    _run(engine, make, left, "sorting", layout, num_rows)
    faults: Faults = {}
    for key in items:
        for kind, (number, uid) in layout.read_marker(key).items():
            before, first = faults.get(kind, (0, uid))
            faults[kind] = (before + number, min(first, uid))
    return faults


def _check_even(group: FileGroup, rows: NDArray[np.int64]) -> None:
    """Raise InputError where a slice has more rows than a worker may have in memory."""
    most = int(rows.argmax())
    if rows[most] > _MOST_ROWS:
        raise InputError(
            f"{group.name} has {int(rows[most]):,} rows in one of {len(rows):,} equal ranges of "
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
    mark = layout.folder / "partitioned" / f"of-{uuid.uuid4().hex}"
    with atomic_write(mark):
        pass
    try:
        make = functools.partial(_make_in_folder, mark, make)
        errors = run_shards(engine, make, items, write, _RETRIES, label, num_rows, give_up=True)
    finally:
        mark.unlink(missing_ok=True)
    for error in errors.values():
        raise error if isinstance(error, InputError) else InputError(f"{label} failed: {error}")


def _make_in_folder(mark: Path, make: TaskFactory, device: str) -> Callable[[Any], Any]:
    """`make`, where the worker sees the driver's folder; a path may mean another one elsewhere."""
    if not mark.exists():
        raise InputError(
            f"--work_dir {mark.parents[1]} is not the same folder on {socket.gethostname()}, where "
            "a worker runs: name one on a disk that all nodes share"
        )
    return make(device)


def _dealer(folder: Path, num_slices: int, rows: int, device: str) -> Callable[[Any], Any]:
    layout = Layout(folder, (), num_slices)

    def deal(item: tuple[str, FileGroup]) -> list[list[int]]:
        key, group = item
        counts = list[list[int]]()
        for run in _runs(group.batches(), rows):
            counts.append(write_run(layout.run(key, len(counts)), run, num_slices).tolist())
            del run  # not held while the next one is read
        return counts

    return deal


def _runs(batches: Iterator[Rows], rows: int) -> Iterator[Rows]:
    """The same, in pieces of at least so many rows but for the last."""
    parts, total = list[Rows](), 0
    for batch in filter(len, batches):
        parts.append(batch)
        total += len(batch)
        if total >= rows:
            run = Rows.concatenate(parts)
            parts, total = [], 0  # not held while the run is written
            yield run
            del run
    if parts:
        yield Rows.concatenate(parts)


def _sorter(layout: Layout, runs: Sequence[Sequence[Path]], device: str) -> Callable[[Any], Any]:
    def sort(item: tuple[str, tuple[int, int]]) -> Faults:
        _, (number, start) = item
        return sort_slice(layout, runs, number, start)

    return sort


def sort_slice(layout: Layout, runs: Sequence[Sequence[Path]], number: int, start: int) -> Faults:
    """Write a slice of each array.

    Args:
        runs: of each group.
        number: of the slice.
        start: row of its first uid in the arrays.
    """
    rows = read_slice(runs[0], number)
    order = sort_uids(rows.high, rows.low)
    here = rows.uids
    write_rows(layout.uids, start, here)
    faults: Faults = {}
    same = (rows.high[1:] == rows.high[:-1]) & (rows.low[1:] == rows.low[:-1])
    _note_fault(faults, "twice", here[1:], same)
    paths = layout.columns()
    for place in range(len(layout.groups)):
        if place:
            values, times = _join(rows, read_slice(runs[place], number))
        else:
            values = {name: column.take(order) for name, column in rows.columns.items()}
            times = np.ones(len(rows), np.int64)
        _note_fault(faults, f"repeated {place}", here, times > 1)
        _note_fault(faults, f"missing {place}", here, times == 0)
        for name, column in values.items():
            finite = np.isfinite(column)
            _note_fault(faults, f"not finite {place} {name}", here, ~finite & (times > 0))
            column[~finite] = np.nan
            write_rows(paths[place, name], start, column)
    return faults


def _join(pool: Rows, rows: Rows) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.int64]]:
    """Columns [m] in the order of sorted uids, NaN where there is no row; and how many rows [m]."""
    if not len(pool):
        return {name: column[:0] for name, column in rows.columns.items()}, np.zeros(0, np.int64)
    places = find_uids(pool.high, pool.low, rows.uids)
    inside = np.flatnonzero(places >= 0)
    values: dict[str, NDArray[np.floating]] = {}
    for name, column in rows.columns.items():
        values[name] = np.full(len(pool), np.nan, column.dtype)
        values[name][places[inside]] = column[inside]
    return values, np.bincount(places[inside], minlength=len(pool))


def _note_fault(
    faults: Faults, kind: str, uids: NDArray[np.void], wrong: NDArray[np.bool_]
) -> None:
    """Note how many of some sorted uids are wrong, and the first."""
    if wrong.any():
        faults[kind] = (int(np.count_nonzero(wrong)), format_uid(uids[int(wrong.argmax())]))
