"""Arrays as long as the pool that lie in files, so that a pool may be larger than memory.

What is computed of an array in a file, block by block, is put into a file beside it: the code is
the same for both kinds of array, and so are the numbers.
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

_BLOCK = 1 << 20
_BITS = 16  # of a histogram


def create_array(path: Path, length: int, dtype: DTypeLike) -> NDArray[Any]:
    """A new array in a .npy file, of zeros, which is there only once its room is reserved.

    Raises:
        InputError: the disk is full, or the place cannot be written.
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
    """Write rows of an array in a file, while others, perhaps on other machines, write others.

    Not through a map of the file: its pages would be counted as the process's memory, and of a
    page that two machines have a network file system would keep what the last one wrote of it.

    Args:
        path: of `create_array`.
        start: the first of the rows.
        rows: [n] of its dtype; on the disk when this returns.

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
    """Whether an array, or what it is a view of, is mapped from a file."""
    return _folder_of(array) is not None


def zeros_like_storage(
    array: NDArray[Any], dtype: DTypeLike, length: int | None = None
) -> NDArray[Any]:
    """Zeros, in memory; where `array` lies in a file, in a file of the same folder, without a name.

    Args:
        array: any.
        dtype: of the new one.
        length: of the new one; that of `array` if None.

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
            found = np.memmap(name, dtype, "r+", shape=(length,))
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError as error:
        raise InputError(
            f"{folder} has no room for {length * np.dtype(dtype).itemsize:,} bytes more "
            f"({error.strerror or error})"
        ) from None
    return found


def filter_rows(
    arrays: tuple[NDArray[Any], ...], keep: Callable[[NDArray[Any]], NDArray[np.bool_]]
) -> tuple[NDArray[Any], ...]:
    """The rows of equally long arrays that are to be kept; the arrays themselves if all are.

    Args:
        arrays: [M] each.
        keep: of some of the first array's values, which to keep; asked twice.
    """
    parts = blocks(len(arrays[0]), _BLOCK)
    kept = [int(np.count_nonzero(keep(arrays[0][part]))) for part in parts]
    if sum(kept) == len(arrays[0]):
        return arrays
    fewer = tuple(zeros_like_storage(array, array.dtype, sum(kept)) for array in arrays)
    row = 0
    for part, number in zip(parts, kept, strict=True):
        chosen = keep(arrays[0][part])
        for array, of in zip(fewer, arrays, strict=True):
            array[row : row + number] = of[part][chosen]
        row += number
    return fewer


@dataclass(frozen=True)
class Chunk:
    """Some values that a shelf has, their number, and where they are: here, or in its file."""

    length: int
    values: NDArray[Any] | None
    start: int = 0


class SpillFile:
    """Arrays put aside: in memory, or where `beside` would put one.

    Attributes:
        in_memory: whether it is there.
    """

    def __init__(self, array: NDArray[Any], dtype: DTypeLike) -> None:
        """
        Args:
            array: beside which to be.
            dtype: of what is put here.

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
        """Put a copy aside.

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

    def get(self, piece: Chunk, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """What was put aside, or some of it.

        Raises:
            InputError: the disk does not give it back.
        """
        if piece.values is not None:
            return piece.values[begin:end]
        assert self._file is not None
        found = np.empty((piece.length if end is None else end) - begin, self._dtype)
        left = found.view(np.uint8).data
        try:
            self._file.seek(piece.start + begin * self._dtype.itemsize)
            while left:
                if not (number := self._file.readinto(left)):
                    raise OSError(errno.EIO, "a temporary file there has lost its end")
                left = left[number:]
        except OSError as error:
            raise InputError(f"{self._folder} cannot be read ({error.strerror})") from None
        return found

    def rest(self, piece: Chunk, begin: int) -> Chunk:
        """A piece without its first `begin` values, whose room is free again if it is memory."""
        values = None if piece.values is None else piece.values[begin:].copy()
        start = piece.start + begin * self._dtype.itemsize
        return Chunk(piece.length - begin, values, start)


def order_statistic(values: NDArray[np.floating], rank: int) -> float:
    """The value of a rank, from 0 for the smallest, as `numpy.partition(values, rank)[rank]`.

    Of an array in a file without a copy of all: histograms of the leading bits say where it is.

    Args:
        values: floats [M] without NaN.
        rank: 0 to M - 1.
    """
    if not is_memory_mapped(values):
        return float(np.partition(values, rank)[rank])
    kind = np.dtype(f"u{values.dtype.itemsize}")
    width = 8 * kind.itemsize
    low, high = 0, (1 << width) - 1  # the ordered bits that it may have
    while True:
        shift = max((high - low).bit_length() - _BITS, 0)
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
            return _of_ordered_bits(low, values.dtype)


def _ordered_bits(values: NDArray[np.floating], kind: np.dtype[Any]) -> NDArray[Any]:
    """Unsigned integers that are ordered as the floats are; 0.0 and -0.0 are one."""
    bits = (np.ascontiguousarray(values) + values.dtype.type(0)).view(kind)
    sign = kind.type(1 << (8 * kind.itemsize - 1))
    ordered: NDArray[Any] = np.where(bits & sign, ~bits, bits | sign)
    return ordered


def _of_ordered_bits(bits: int, dtype: np.dtype[Any]) -> float:
    width = 8 * dtype.itemsize
    sign = 1 << (width - 1)
    of = bits ^ sign if bits & sign else ~bits & ((1 << width) - 1)
    return float(np.array(of, f"u{dtype.itemsize}").view(dtype)[()])


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what a full disk did not take
        file.close()


def _reserve(handle: int, size: int) -> None:
    """Room on the disk now: written later, a mapped file ends the process where there is none."""
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
