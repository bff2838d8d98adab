"""Reads the candidate pool: the sorted uids of its examples."""

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
from datacomp_flyt.pool.uid_search import Positions, UidIndex, position_dtype, sorted_halves
from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.streams import say
from datacomp_flyt.threads import map_threads


@dataclass(frozen=True)
class Pool(UidIndex):
    """The examples of a pool, sorted by uid whatever the order of its files.

    Attributes:
        high, low: the halves of all uids, two uint64 arrays [M], sorted as pairs without repeats.
        shards: the metadata files.
        positions: the index of each row of each file; -1 for rows that are left out.
        available: the list of images, if rows without an image are left out.
    """

    shards: list[ParquetShard]
    positions: list[Positions]
    available: Available | None = None

    @property
    def num_listed(self) -> int:
        """The number of rows of the metadata, including rows that are left out."""
        return sum(shard.num_rows for shard in self.shards)


@dataclass
class FilePool:
    """A pool larger than memory, whose uids are sorted into a file together with its columns.

    Attributes:
        shards: the metadata files.
        available: the list of images, if rows without an image are left out.
        positions: always empty, since the external sort joins rows by uid instead.
        uids: memory-mapped `u8,u8` array [M]; empty until columns have been read.
    """

    shards: list[ParquetShard]
    available: Available | None = None
    positions: list[Positions] = field(default_factory=list)
    uids: NDArray[np.void] = field(default_factory=lambda: np.empty(0, np.void))

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def num_listed(self) -> int:
        """The number of rows of the metadata, including rows that are left out."""
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
        metadata_dir: a local or cloud path.
        num_workers: the number of threads.
        progress: show a progress bar, and print the number of rows that are left out.
        available: the list of images; rows without an image are left out too.

    Raises:
        InputError: see `open_shards`; or a value is no uid, a uid is in the pool twice, an npz has
            another number of rows than its parquet, or no row is left.
    """
    shards = open_shards(metadata_dir, "--metadata_dir", num_workers)
    ends = np.cumsum([shard.num_rows for shard in shards])
    uids, kept = _read_uids(shards, ends, num_workers, progress, available)
    name = f"--metadata_dir {metadata_dir}"
    left_out = describe_left_out(name, shards, len(uids), available)
    if left_out and progress:
        say(left_out)
    high, low, order = sorted_halves(uids, num_workers)
    del uids
    repeats = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
    if len(repeats):
        first = int(repeats[0])
        rows = sorted(np.flatnonzero(kept)[order[first : first + 2]])
        names = [_row_name(shards, ends, int(row)) for row in rows]
        uid = f"{int(high[first]):016x}{int(low[first]):016x}"
        raise repeated_in_pool(uid, " and ".join(names), len(repeats))
    rank = np.empty(len(order), position_dtype(len(kept)))
    rank[order] = np.arange(len(order), dtype=rank.dtype)
    del order
    positions = rank
    if len(rank) < len(kept):
        positions = np.full(len(kept), -1, rank.dtype)
        positions[kept] = rank
    pa.default_memory_pool().release_unused()
    return Pool(high, low, shards, np.split(positions, ends[:-1]), available)


def _read_uids(
    shards: list[ParquetShard],
    ends: NDArray[np.int64],
    num_workers: int,
    progress: bool,
    available: Available | None,
) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Read the uids of the rows in the pool, and a mask of these rows among all.

    Args:
        ends: the cumulative row counts of the files.
    """
    all_uids = np.empty(int(ends[-1]), UID_DTYPE)
    kept = np.ones(len(all_uids), np.bool_)
    sizes = np.zeros(len(shards), np.int64)  # the number of rows in the pool of each file

    def read(index: int) -> None:
        """Compact the kept uids at the start of the file's slice."""
        shard = shards[index]
        check_npz(shard)
        begin = row = end = ends[index] - shard.num_rows
        for uids, _, downloaded in shard.pool_rows():
            keep = in_pool(uids, downloaded, available)
            if keep is not None:
                kept[row : row + len(uids)] = keep
            row += len(uids)
            uids = uids if keep is None else uids[keep]
            all_uids[end : end + len(uids)] = uids
            end += len(uids)
        sizes[index] = end - begin

    map_threads(read, range(len(shards)), num_workers, "reading uids" if progress else None)
    return _without_gaps(all_uids, ends, sizes), kept


def in_pool(
    uids: NDArray[np.void], downloaded: NDArray[np.bool_] | None, available: Available | None
) -> NDArray[np.bool_] | None:
    """Return a mask of the rows of a metadata file that are in the pool; None keeps all.

    Args:
        uids: `u8,u8` array [n] of the rows.
        downloaded: a mask [n] of the rows whose download succeeded; None for all.
        available: the list of images, if rows without an image are left out.
    """
    keep = downloaded
    if available is not None:
        has_image = available.contains(uids)
        keep = has_image if keep is None else keep & has_image
    return None if keep is None or keep.all() else keep


def _without_gaps(
    values: NDArray[np.void], ends: NDArray[np.signedinteger], sizes: NDArray[np.signedinteger]
) -> NDArray[np.void]:
    """Close the gaps between the files' slices, in place; `sizes` counts the values of each."""
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
    """Return a sentence on the rows of metadata that are left out; None if there are none.

    Args:
        name: the flag and the folder of the metadata, for messages.
        shards: the metadata files.
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
    """Return a pool of all uids in some tables, without shards of its own.

    Args:
        shards: the tables.
        name: the flag and the path of the tables, for messages.
        num_workers: the number of threads.

    Raises:
        InputError: a value is no uid, or the tables have no row.
    """
    parts = map_threads(lambda shard: list(iter_uids(shard)), shards, num_workers)
    uids = np.concatenate([np.empty(0, UID_DTYPE), *itertools.chain.from_iterable(parts)])
    if not len(uids):
        raise InputError(f"{name} holds no example: all files are empty")
    del parts
    high, low, _ = sorted_halves(uids, num_workers)
    del uids
    first = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
    return Pool(high[first], low[first], [], [])


def iter_uids(shard: ParquetShard) -> Iterator[NDArray[np.void]]:
    """Read the uids of a parquet file in batches.

    Raises:
        InputError: a value is no uid.
    """
    for uids, _ in shard.rows_with_uids():
        yield uids


def _row_name(shards: list[ParquetShard], ends: NDArray[np.int64], row: int) -> str:
    """Turn a global row number into 'FILE row N'."""
    index = int(np.searchsorted(ends, row, "right"))
    return f"{shards[index].path} row {row - int(ends[index]) + shards[index].num_rows}"


def check_npz(shard: ParquetShard) -> None:
    """Raise InputError if the npz beside a parquet file has another number of rows."""
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
