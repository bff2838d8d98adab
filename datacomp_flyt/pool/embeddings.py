"""Reads embeddings from the npz files beside a pool's metadata, in blocks of rows.

DataComp stores the CLIP embeddings of shard `X.parquet` in `X.npz`, in the same order of rows:
`b32_img`, `b32_txt` [n, 512], `l14_img` and `l14_txt` [n, 768]. A shard of half a million rows has
gigabytes of them, so zip members are streamed.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import check_unchanged
from datacomp_flyt.files.npy_header import read_npy_header
from datacomp_flyt.files.open_file import open_file, readable
from datacomp_flyt.pool.parquet import STATUS, SUCCESS, ParquetShard

BLOCK_ROWS = 2048
"""Rows read at once: 2 MB of a stored 512-wide float16 array."""

NOT_IN_POOL = f"row with a {STATUS!r} other than {SUCCESS!r}"
UNUSABLE = "embedding not finite or all zero"
NOT_UNIT_NORM = "embedding is not of unit norm"

_NPZ = ("npz", "download it again")
_WIDEST = 1 << 14  # columns of an array, of which a block of rows is held in memory
_NORM_TOLERANCE = 0.01  # ten times the error of CLIP in float16 on a GPU


def embedding_widths(shard: ParquetShard, arrays: Sequence[str]) -> tuple[int, ...]:
    """Read the number of columns of each array from its header.

    Raises:
        InputError: there is no npz beside the metadata, or it has no such array; or an array does
            not hold floats [rows of the metadata, columns >= 1] in row-major order.
    """
    with contextlib.ExitStack() as stack:
        return tuple(_open_array(shard, name, stack).width for name in arrays)


def iter_embeddings(
    shard: ParquetShard,
    arrays: Sequence[str],
    block_rows: int = BLOCK_ROWS,
    normalize: bool = True,
    counts: Counter[str] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield the named arrays, concatenated along the columns, in blocks of rows.

    Args:
        shard: the metadata file, whose npz is read.
        arrays: one or more names, such as ("b32_img", "b32_txt").
        block_rows: the number of rows of each block but the last.
        normalize: scale the part of each array in a row to unit norm. Stored embeddings may have
            other norms, since float16 rounds and some tools do not normalise.
        counts: a counter of the rows that are `UNUSABLE`, `NOT_UNIT_NORM` or `NOT_IN_POOL`.

    Yields:
        float32 [n, sum of widths], a new array each time. A row is NaN if it has a part that is
        not finite or all zero, or if it is not in the pool because its download failed.

    Raises:
        InputError: see `embedding_widths`; or the file is damaged, or has changed since the
            metadata were opened.
    """
    path = shard.npz
    in_pool = shard.rows_in_pool()
    with contextlib.ExitStack() as stack:
        # one handle per array, so that a cloud filesystem reads ahead in each
        opened = [_open_array(shard, name, stack) for name in arrays]
        width = sum(array.width for array in opened)
        for start in range(0, shard.num_rows, block_rows):
            rows = min(block_rows, shard.num_rows - start)
            block = np.empty((rows, width), np.float32)
            usable, unit = np.ones((2, rows), np.bool_)
            column = 0
            for array in opened:
                part = block[:, column : column + array.width]
                with readable(path, *_NPZ), np.errstate(over="ignore"):
                    part[:] = array.read(rows)
                norms = _norms(part)
                usable &= np.isfinite(norms) & (norms > 0)
                unit &= np.abs(norms - 1) < _NORM_TOLERANCE
                if normalize:
                    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                        part *= (1 / norms)[:, None]
                column += array.width
            wanted = np.ones(rows, np.bool_) if in_pool is None else in_pool[start : start + rows]
            if not (usable & wanted).all():
                block[~(usable & wanted)] = np.nan
            if counts is not None:
                if in_pool is not None:
                    counts[NOT_IN_POOL] += int(np.count_nonzero(~wanted))
                counts[UNUSABLE] += int(np.count_nonzero(wanted & ~usable))
                usable &= wanted
                counts[NOT_UNIT_NORM] += int(np.count_nonzero(usable & ~unit))
            if start + rows == shard.num_rows and path in shard.versions:
                check_unchanged(shard.fs, {path: shard.versions[path]})
            yield block


@dataclass(frozen=True)
class _StoredArray:
    """A float array [n, width] in a zip file, which is read sequentially."""

    member: IO[bytes]
    dtype: np.dtype[Any]
    width: int

    def read(self, rows: int) -> NDArray[np.floating]:
        """Read the next rows as they are stored."""
        size = rows * self.width * self.dtype.itemsize
        content = self.member.read(size)
        if len(content) < size:
            raise EOFError("it ends before its last row")
        return np.frombuffer(content, self.dtype).reshape(rows, self.width)


def _open_array(shard: ParquetShard, name: str, stack: contextlib.ExitStack) -> _StoredArray:
    path = shard.npz
    with readable(path, *_NPZ):
        if not shard.fs.exists(path):
            raise InputError(
                f"{path} is not there: embeddings are read from the npz beside each parquet file, "
                "which DataComp's download_upstream.py fetches with --download_npz"
            )
        archive = stack.enter_context(
            zipfile.ZipFile(
                stack.enter_context(open_file(shard.fs, path, shard.versions.get(path)))
            )
        )
        if f"{name}.npy" not in archive.namelist():
            names = ", ".join(other.removesuffix(".npy") for other in archive.namelist())
            raise InputError(
                f"{path} has no array {name!r} (it has {names or 'none'}): take a pool with "
                "these embeddings, or what was made for those"
            )
        member = stack.enter_context(archive.open(f"{name}.npy"))
        shape, by_columns, dtype = read_npy_header(member)
        if dtype.kind != "f" or len(shape) != 2 or shape[1] < 1 or by_columns:
            order = " in column order" if by_columns else ""
            raise InputError(
                f"{path} has array {name!r} of {dtype} {list(shape)}{order}: embeddings are "
                f"floats [{shard.num_rows}, width] in row order"
            )
        if shape[1] > _WIDEST:
            raise InputError(
                f"{path} has array {name!r} of width {shape[1]:,}: embeddings are at most "
                f"{_WIDEST:,} wide"
            )
        if shape[0] != shard.num_rows:
            raise InputError(
                f"{path} has {shape[0]} rows in array {name!r} and {shard.path} has "
                f"{shard.num_rows}: the two belong together row by row, so download both again"
            )
        return _StoredArray(member, dtype, shape[1])


def _norms(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Euclidean norm of each row of an array [n, d]."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms
