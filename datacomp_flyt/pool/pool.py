"""The candidate pool: which examples there are."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.engines.threads import map_threads
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from datacomp_flyt.pool.uids import UID_DTYPE, InvalidUid, decode_uids, format_uid


@dataclass(frozen=True)
class Pool:
    """A pool's examples in the order of their uids, whatever the order of its files.

    Attributes:
        uids: `u8,u8` array [M], sorted, no uid twice.
        shards: the metadata files.
    """

    uids: NDArray[np.void]
    shards: list[ParquetShard]

    def __len__(self) -> int:
        return len(self.uids)


def read_pool(metadata_dir: str, num_workers: int, progress: bool = True) -> Pool:
    """Read the uids of a DataComp metadata folder (parquet, each with or without an npz).

    Raises:
        InputError: see `open_shards`; a value that is no uid; a uid twice in the pool; an npz with
            another number of rows than its parquet; a pool with no row.
    """
    shards = open_shards(metadata_dir, "--metadata_dir", num_workers)
    ends = np.cumsum([shard.num_rows for shard in shards])
    uids = np.empty(int(ends[-1]), UID_DTYPE)
    if not len(uids):
        raise InputError(f"--metadata_dir {metadata_dir} holds no example: all files are empty")

    def read(number: int) -> None:
        shard = shards[number]
        _check_npz(shard)
        uids[ends[number] - shard.num_rows : ends[number]] = read_uids(shard)

    text = "reading uids" if progress else None
    map_threads(read, range(len(shards)), num_workers, text)
    order = _sorting(uids)
    uids = uids[order]
    twice = np.flatnonzero(uids[1:] == uids[:-1])
    if len(twice):
        rows = [_place(shards, ends, int(row)) for row in sorted(order[twice[0] : twice[0] + 2])]
        raise InputError(
            f"uid {format_uid(uids[twice[0]])} is in the pool twice ({rows[0]} and {rows[1]}; "
            f"{len(twice):,} such pairs): remove the second copy"
        )
    return Pool(uids, shards)


def read_uids(shard: ParquetShard) -> NDArray[np.void]:
    """uids of one parquet file [n].

    Raises:
        InputError: a value is not 32 hexadecimal characters.
    """
    uids = np.empty(shard.num_rows, UID_DTYPE)
    row = 0
    for batch in shard.batches("uid"):
        try:
            uids[row : row + len(batch)] = decode_uids(batch)
        except InvalidUid as error:
            raise InputError(
                f"{shard.path} row {row + error.row} has uid {error.value!r}: "
                "a uid is 32 hexadecimal characters"
            ) from None
        row += len(batch)
    return uids


def _sorting(uids: NDArray[np.void]) -> NDArray[np.int64]:
    """The permutation that sorts uids; two 64-bit keys sort faster than one pair."""
    high = np.ascontiguousarray(uids["f0"])
    order = np.argsort(high)
    high = high[order]
    if np.any(high[1:] == high[:-1]):
        order = np.lexsort((uids["f1"], uids["f0"]))
    return order


def _place(shards: list[ParquetShard], ends: NDArray[np.int64], row: int) -> str:
    number = int(np.searchsorted(ends, row, "right"))
    return f"{shards[number].path} row {row - int(ends[number]) + shards[number].num_rows}"


def _check_npz(shard: ParquetShard) -> None:
    """Raise unless the npz beside a parquet file, if there is one, has as many rows."""
    path = shard.path[: -len(".parquet")] + ".npz"
    if not shard.fs.exists(path):
        return
    try:
        with shard.fs.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read_header = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shape = read_header(member)[0]
                if shape[:1] != (shard.num_rows,):
                    raise InputError(
                        f"{path} has {shape[0] if shape else 'no'} rows in array "
                        f"{name.removesuffix('.npy')!r} and {shard.path} has {shard.num_rows}: "
                        "the two belong together row by row, so download both again"
                    )
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise a dozen kinds
        raise InputError(f"{path} cannot be read as npz ({error}): download it again") from None
