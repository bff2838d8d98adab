"""The candidate pool: which examples there are."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.engines.threads import map_threads
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.join_errors import twice_in_pool
from datacomp_flyt.pool.npy_header import read_npy_header
from datacomp_flyt.pool.open_file import open_file, readable
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from datacomp_flyt.pool.uid_search import Positions, argsort_hashes
from datacomp_flyt.pool.uids import UID_DTYPE


@dataclass(frozen=True)
class Pool:
    """A pool's examples in the order of their uids, whatever the order of its files.

    Attributes:
        high, low: the halves of all uids, two uint64 arrays [M]: sorted as pairs, no pair twice.
            Apart they are searched and sorted with no copy.
        shards: the metadata files.
        positions: for each file, the index of each of its rows.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    shards: list[ParquetShard]
    positions: list[Positions]

    def __len__(self) -> int:
        return len(self.high)

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
        positions: none.
        uids: `u8,u8` array [M], in a file; empty until columns have been read.
    """

    shards: list[ParquetShard]
    positions: list[Positions] = field(default_factory=list)
    uids: NDArray[np.void] = field(default_factory=lambda: np.empty(0, np.void))

    def __len__(self) -> int:
        return sum(shard.num_rows for shard in self.shards)


def read_pool(metadata_dir: str, num_workers: int, progress: bool = True) -> Pool:
    """Read the uids of a DataComp metadata folder (parquet, each with or without an npz).

    Raises:
        InputError: see `open_shards`; a value that is no uid; a uid twice in the pool; an npz with
            another number of rows than its parquet; a pool with no row.
    """
    shards = open_shards(metadata_dir, "--metadata_dir", num_workers)
    ends = np.cumsum([shard.num_rows for shard in shards])
    high, low = np.empty((2, int(ends[-1])), np.uint64)
    if not len(high):
        raise InputError(f"--metadata_dir {metadata_dir} holds no example: all files are empty")

    def read(number: int) -> None:
        shard = shards[number]
        check_npz(shard)
        row = ends[number] - shard.num_rows
        for part in iter_uids(shard):
            high[row : row + len(part)] = part["f0"]
            low[row : row + len(part)] = part["f1"]
            row += len(part)

    text = "reading uids" if progress else None
    map_threads(read, range(len(shards)), num_workers, text)
    order = sort_uids(high, low)
    twice = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
    if len(twice):
        rows = [_place(shards, ends, int(row)) for row in sorted(order[twice[0] : twice[0] + 2])]
        uid = f"{int(high[twice[0]]):016x}{int(low[twice[0]]):016x}"
        raise twice_in_pool(uid, f"{rows[0]} and {rows[1]}", len(twice))
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order), dtype=order.dtype)
    pa.default_memory_pool().release_unused()
    return Pool(high, low, shards, np.split(positions, ends[:-1]))


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
