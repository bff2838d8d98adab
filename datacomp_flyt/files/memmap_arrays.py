"""Memory-mapped arrays with one value per example, for pools larger than memory.

Results that are computed from a memory-mapped array, block by block, are memory-mapped as well, in
temporary files of the same folder. The code, and the numbers, are the same for both kinds of array.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.npy_header import read_npy_header
from datacomp_flyt.files.output_files import create_temporary
from datacomp_flyt.threads import blocks

_BLOCK = 1 << 20  # rows handled at once
_HISTOGRAM_BITS = 16


def create_array(path: Path, length: int, dtype: DTypeLike) -> NDArray[Any]:
    """Create a .npy file of zeros and map it. The file appears once its space is reserved.

    Args:
        path: the file.
        length: the number of values.
        dtype: their type.

    Raises:
        InputError: the disk is full, or the path cannot be written.
    """
    unfinished = None
    try:
        handle, unfinished = create_temporary(path)
        with os.fdopen(handle, "r+b"):
            np.lib.format.open_memmap(unfinished, "w+", np.dtype(dtype), (length,))
            _reserve(handle, os.fstat(handle).st_size)
        os.replace(unfinished, path)
        array: NDArray[Any] = np.lib.format.open_memmap(path, "r+")
    except OSError as error:
        if unfinished is not None:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None
    return array


def write_rows(path: Path, start: int, rows: NDArray[Any]) -> None:
    """Write some rows of a .npy file and sync them. Several machines may write different rows.

    The file is not mapped: mapped pages would count as the process's memory, and if two machines
    map one page, a network file system keeps only what the last of them wrote.

    Args:
        path: a file of `create_array`.
        start: the index of the first row.
        rows: an array [n] of the file's dtype.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            read_npy_header(file)
            file.seek(file.tell() + start * rows.itemsize)
            left = np.ascontiguousarray(rows).view(np.uint8).data
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def is_memory_mapped(array: NDArray[Any]) -> bool:
    """Return whether an array, or the array that it is a view of, is mapped from a file."""
    return _folder_of(array) is not None


def zeros_like_storage(
    array: NDArray[Any], dtype: DTypeLike, length: int | None = None
) -> NDArray[Any]:
    """Return a zero array: in memory, or in an unnamed temporary file if `array` is memory-mapped.

    The temporary file lies in the folder of the file that `array` is mapped from.

    Args:
        array: the array whose kind of storage is used.
        dtype: the type of the new array.
        length: the length of the new array; that of `array` if None.

    Raises:
        InputError: the disk is full.
    """
    length = len(array) if length is None else length
    folder = _folder_of(array)
    if folder is None or not length:
        return np.zeros(length, dtype)
    try:
        handle, name = create_temporary(folder / "array")
        try:
            _reserve(handle, length * np.dtype(dtype).itemsize)
            zeros = np.memmap(name, dtype, "r+", shape=(length,))
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError as error:
        raise InputError(
            f"{folder} has no room for {length * np.dtype(dtype).itemsize:,} bytes more "
            f"({error.strerror or error})"
        ) from None
    return zeros


def filter_rows(
    arrays: tuple[NDArray[Any], ...], keep: Callable[[NDArray[Any]], NDArray[np.bool_]]
) -> tuple[NDArray[Any], ...]:
    """Filter the rows of equally long arrays; return the arrays themselves if all rows are kept.

    Args:
        arrays: arrays [M].
        keep: maps a block [n] of the first array to a mask [n] of the rows to keep; called twice
            for each block.
    """
    parts = blocks(len(arrays[0]), _BLOCK)
    counts = [int(np.count_nonzero(keep(arrays[0][part]))) for part in parts]
    if sum(counts) == len(arrays[0]):
        return arrays
    filtered = tuple(zeros_like_storage(array, array.dtype, sum(counts)) for array in arrays)
    row = 0
    for part, count in zip(parts, counts, strict=True):
        mask = keep(arrays[0][part])
        for target, array in zip(filtered, arrays, strict=True):
            target[row : row + count] = array[part][mask]
        row += count
    return filtered


@dataclass(frozen=True)
class Chunk:
    """A chunk of values in a `SpillFile`.

    Attributes:
        length: the number of values.
        values: the values, if they are in memory.
        start: the offset of the values in the file, in bytes, if they are in the file.
    """

    length: int
    values: NDArray[Any] | None
    start: int = 0


class SpillFile:
    """Stores chunks of values: in memory, or in a temporary file if `array` is memory-mapped.

    Attributes:
        in_memory: whether the chunks are in memory.
    """

    def __init__(self, array: NDArray[Any], dtype: DTypeLike) -> None:
        """
        Args:
            array: the array whose kind of storage is used, see `zeros_like_storage`.
            dtype: the type of the values.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = _folder_of(array)
        self.in_memory = folder is None
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._size = 0
        self._file = None
        if folder is not None:
            try:
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            except OSError as error:
                raise InputError(f"{folder} cannot be written ({error.strerror})") from None
            weakref.finalize(self, _close, self._file)

    def put(self, values: NDArray[Any]) -> Chunk:
        """Store a copy of some values.

        Raises:
            InputError: the disk is full.
        """
        if self._file is None:
            return Chunk(len(values), values.copy())
        start = self._size
        left = np.ascontiguousarray(values).view(np.uint8).data
        try:
            self._file.seek(start)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise InputError(f"{self._folder} cannot be written ({error.strerror})") from None
        self._size += values.nbytes
        return Chunk(len(values), None, start)

    def get(self, chunk: Chunk, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Read a chunk, or the values from `begin` to `end` of it.

        Raises:
            InputError: the file cannot be read.
        """
        if chunk.values is not None:
            return chunk.values[begin:end]
        assert self._file is not None
        values = np.empty((chunk.length if end is None else end) - begin, self._dtype)
        left = values.view(np.uint8).data
        try:
            self._file.seek(chunk.start + begin * self._dtype.itemsize)
            while left:
                if not (num_bytes := self._file.readinto(left)):
                    raise OSError(errno.EIO, "a temporary file there has lost its end")
                left = left[num_bytes:]
        except OSError as error:
            raise InputError(f"{self._folder} cannot be read ({error.strerror})") from None
        return values

    def rest(self, chunk: Chunk, begin: int) -> Chunk:
        """Return a chunk without its first `begin` values, whose memory is freed."""
        values = None if chunk.values is None else chunk.values[begin:].copy()
        start = chunk.start + begin * self._dtype.itemsize
        return Chunk(chunk.length - begin, values, start)


def order_statistic(values: NDArray[np.floating], rank: int) -> float:
    """Return the value of a rank, as `numpy.partition(values, rank)[rank]`.

    A memory-mapped array is not copied: histograms of the leading bits narrow the range in which
    the value lies, until a single value is left.

    Args:
        values: floats [M] without NaN.
        rank: the rank, from 0 for the smallest value to M - 1.
    """
    if not is_memory_mapped(values):
        return float(np.partition(values, rank)[rank])
    kind = np.dtype(f"u{values.dtype.itemsize}")
    width = 8 * kind.itemsize
    low, high = 0, (1 << width) - 1  # the range of its ordered bits
    while True:
        shift = max((high - low).bit_length() - _HISTOGRAM_BITS, 0)
        counts = np.zeros(((high - low) >> shift) + 1, np.int64)
        for part in blocks(len(values), _BLOCK):
            bits = _ordered_bits(values[part], kind)
            inside = bits[(bits >= low) & (bits <= high)] - kind.type(low)
            counts += np.bincount((inside >> kind.type(shift)).astype(np.int64), None, len(counts))
        ends = np.cumsum(counts)
        bin_ = int(np.searchsorted(ends, rank, "right"))
        rank -= int(ends[bin_ - 1]) if bin_ else 0
        low, high = low + (bin_ << shift), min(low + ((bin_ + 1) << shift) - 1, high)
        if low == high:
            return _from_ordered_bits(low, values.dtype)


def _ordered_bits(values: NDArray[np.floating], kind: np.dtype[Any]) -> NDArray[Any]:
    """Map floats [n] to unsigned integers [n] of the same order; 0.0 and -0.0 get the same one."""
    bits = (np.ascontiguousarray(values) + values.dtype.type(0)).view(kind)
    sign = kind.type(1 << (8 * kind.itemsize - 1))
    ordered: NDArray[Any] = np.where(bits & sign, ~bits, bits | sign)
    return ordered


def _from_ordered_bits(ordered: int, dtype: np.dtype[Any]) -> float:
    width = 8 * dtype.itemsize
    sign = 1 << (width - 1)
    bits = ordered ^ sign if ordered & sign else ~ordered & ((1 << width) - 1)
    return float(np.array(bits, f"u{dtype.itemsize}").view(dtype)[()])


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses
        file.close()


def _reserve(handle: int, size: int) -> None:
    """Reserve disk space: a write to a mapped file kills the process if the disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:  # macOS
        os.truncate(handle, size)


def _folder_of(array: Any) -> Path | None:
    while array is not None:
        if isinstance(array, np.memmap) and array.filename is not None:
            return Path(array.filename).parent
        array = getattr(array, "base", None)
    return None
