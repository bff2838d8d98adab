"""The candidate pool: which examples there are."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.npy_header import read_npy_header
from datacomp_flyt.files.open_file import open_file, readable
from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.join_errors import repeated_in_pool
from datacomp_flyt.pool.parquet import STATUS, SUCCESS, ParquetShard, open_shards
from datacomp_flyt.pool.uid_search import Positions, argsort_hashes, position_dtype
from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.streams import say
from datacomp_flyt.threads import map_threads


@dataclass(frozen=True)
class Pool:
    """A pool's examples in the order of their uids, whatever the order of its files.

    Attributes:
        high, low: the halves of all uids, two uint64 arrays [M], sorted as pairs without repeats.
            Separate halves are searched and sorted without a copy.
        shards: the metadata files.
        positions: for each file, the index of each of its rows; -1 for rows that are left out.
        available: the list of images, if rows without an image are left out.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    shards: list[ParquetShard]
    positions: list[Positions]
    available: Available | None = None

    def __len__(self) -> int:
        return len(self.high)

    @property
    def num_listed(self) -> int:
        """Rows of the metadata, those that are left out too."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def uids(self) -> NDArray[np.void]:
        """All uids as a new `u8,u8` array [M]."""
        return self.uids_of(slice(None))

    def uids_of(self, part: slice | NDArray[np.signedinteger]) -> NDArray[np.void]:
        """Some uids as a new `u8,u8` array."""
        high = self.high[part]
        uids = np.empty(len(high), UID_DTYPE)
        uids["f0"], uids["f1"] = high, self.low[part]
        return uids


@dataclass
class FilePool:
    """A pool whose uids come with its columns.

    Attributes:
        shards: the metadata files.
        available: the images at hand, if rows without one are left out.
        positions: none.
        uids: `u8,u8` array [M], in a file; empty until columns have been read.
    """

    shards: list[ParquetShard]
    available: Available | None = None
    positions: list[Positions] = field(default_factory=list)
    uids: NDArray[np.void] = field(default_factory=lambda: np.empty(0, np.void))

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def num_listed(self) -> int:
        """Rows of the metadata, those that are left out too."""
        return sum(shard.num_rows for shard in self.shards)


def read_pool(
    metadata_dir: str,
    num_workers: int,
    progress: bool = True,
    available: Available | None = None,
) -> Pool:
    """Read the uids of a DataComp metadata folder (parquet, each with or without an npz).

    Rows whose download failed, by img2dataset's `status`, are left out; their number is printed.

    Args:
        available: the list of images; rows without an image are left out too.

    Raises:
        InputError: see `open_shards`; a value that is no uid; a uid twice in the pool; an npz with
            another number of rows than its parquet; a pool with no row.
    """
    shards = open_shards(metadata_dir, "--metadata_dir", num_workers)
    sizes = np.array([shard.num_rows for shard in shards])
    ends = np.cumsum(sizes)
    high, low = np.empty((2, int(ends[-1])), np.uint64)
    kept = np.ones(len(high), np.bool_)

    def read(number: int) -> None:
        """Write a file's uids to the front of the rows that belong to the file."""
        shard = shards[number]
        check_npz(shard)
        begin = row = end = ends[number] - shard.num_rows
        for uids, _, there in shard.pool_rows():
            there = in_pool(uids, there, available)
            if there is not None:
                kept[row : row + len(uids)] = there
            row += len(uids)
            uids = uids if there is None else uids[there]
            high[end : end + len(uids)] = uids["f0"]
            low[end : end + len(uids)] = uids["f1"]
            end += len(uids)
        sizes[number] = end - begin

    text = "reading uids" if progress else None
    map_threads(read, range(len(shards)), num_workers, text)
    high, low = _closed_up(high, ends, sizes), _closed_up(low, ends, sizes)
    name = f"--metadata_dir {metadata_dir}"
    left_out = describe_left_out(name, shards, len(high), available)
    if left_out and progress:
        say(left_out)
    order = sort_uids(high, low)
    twice = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
    if len(twice):
        of_kept = np.flatnonzero(kept)[order[twice[0] : twice[0] + 2]]
        rows = [_place(shards, ends, int(row)) for row in sorted(of_kept)]
        uid = f"{int(high[twice[0]]):016x}{int(low[twice[0]]):016x}"
        raise repeated_in_pool(uid, f"{rows[0]} and {rows[1]}", len(twice))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=order.dtype)
    positions = rank
    if len(rank) < len(kept):
        positions = np.full(len(kept), -1, position_dtype(len(kept)))
        positions[kept] = rank
    pa.default_memory_pool().release_unused()
    return Pool(high, low, shards, np.split(positions, ends[:-1]), available)


def in_pool(
    uids: NDArray[np.void], there: NDArray[np.bool_] | None, available: Available | None
) -> NDArray[np.bool_] | None:
    """A mask of a metadata file's rows in the pool, given those downloaded; None keeps all."""
    if available is not None:
        at_hand = available.contains(uids)
        there = at_hand if there is None else there & at_hand
    return None if there is None or there.all() else there


def _closed_up(
    values: NDArray[np.uint64], ends: NDArray[np.signedinteger], sizes: NDArray[np.signedinteger]
) -> NDArray[np.uint64]:
    """Move the first `sizes` values of each file together, within the same array."""
    begins = np.concatenate([[0], ends[:-1]])
    row = 0
    for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
        if row < begin:
            values[row : row + size] = values[begin : begin + size].copy()
        row += size
    return values[:row]


def describe_left_out(
    name: str, shards: Sequence[ParquetShard], num_kept: int, available: Available | None
) -> str | None:
    """A sentence on the rows of metadata that are left out; None if there are none.

    Args:
        name: the flag and the folder of the metadata.
        shards: its files.
        num_kept: the number of rows in the pool.
        available: the list of images, if rows without an image are left out.

    Raises:
        InputError: no row is in the pool.
    """
    num_rows = sum(shard.num_rows for shard in shards)
    if not num_rows:
        raise InputError(f"{name} holds no example: all files are empty")
    reasons = [f"have a {STATUS!r} other than {SUCCESS!r}"] * any(STATUS in s.types for s in shards)
    if available is not None:
        reasons.append(f"have no image in {available.name}")
    reason = " or ".join(reasons)
    if not num_kept:
        raise InputError(
            f"{name} has no example to select from: all of its {num_rows:,} rows {reason}"
            + (": give the images of this pool" if available is not None else "")
        )
    if num_kept == num_rows:
        return None
    return f"leaving out {num_rows - num_kept:,} of {num_rows:,} rows of {name}, which {reason}"


def union_of_uids(shards: list[ParquetShard], name: str, num_workers: int) -> Pool:
    """The pool of all uids that some tables name; it has no shards of its own.

    Args:
        name: what to call the tables in messages: flag and path.

    Raises:
        InputError: a value that is no uid, or no row at all.
    """
    parts = map_threads(lambda shard: list(iter_uids(shard)), shards, num_workers)
    uids = np.concatenate([np.empty(0, UID_DTYPE), *itertools.chain.from_iterable(parts)])
    if not len(uids):
        raise InputError(f"{name} holds no example: all files are empty")
    high, low = uids["f0"].copy(), uids["f1"].copy()
    del uids, parts
    sort_uids(high, low)
    first = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
    return Pool(high[first], low[first], [], [])


def iter_uids(shard: ParquetShard) -> Iterator[NDArray[np.void]]:
    """uids of one parquet file, some rows at a time.

    Raises:
        InputError: a value is no uid.
    """
    for uids, _ in shard.rows_with_uids():
        yield uids


def sort_uids(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.signedinteger]:
    """Sort the pairs (high, low) in place; the permutation that did it."""
    order = argsort_hashes(high)
    in_order = high.take(order)
    if np.any(in_order[1:] == in_order[:-1]):  # then `low` decides
        order = np.lexsort((low, high)).astype(order.dtype)
        in_order = high.take(order)
    high[:] = in_order
    low[:] = low.take(order)
    return order


def _place(shards: list[ParquetShard], ends: NDArray[np.int64], row: int) -> str:
    number = int(np.searchsorted(ends, row, "right"))
    return f"{shards[number].path} row {row - int(ends[number]) + shards[number].num_rows}"


def check_npz(shard: ParquetShard) -> None:
    """Raise unless the npz beside a parquet file, if there is one, has as many rows."""
    path = shard.npz
    with readable(path, "npz", "download it again"):
        if not shard.fs.exists(path):
            return
        version = shard.versions.get(path)
        with open_file(shard.fs, path, version) as file, zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    shape = read_npy_header(member)[0]
                if shape[:1] != (shard.num_rows,):
                    raise InputError(
                        f"{path} has {shape[0] if shape else 'no'} rows in array "
                        f"{name.removesuffix('.npy')!r} and {shard.path} has {shard.num_rows}: "
                        "the two belong together row by row, so download both again"
                    )
