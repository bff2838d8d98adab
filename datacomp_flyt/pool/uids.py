"""Converts uids between 32 hexadecimal characters and the `u8,u8` pairs of DataComp's resharder.

Columns of 16 raw bytes, as databases write UUIDs, are read too. Characters are converted in Arrow's
buffers, without a Python object for each value.
"""

from __future__ import annotations

import binascii

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.pool.arrow_types import is_kind, plain_array, value_type

UID_DTYPE = np.dtype("u8,u8")
"""The first and last 16 characters as unsigned integers; sorts in the order of the characters."""

UID_FORM = "a uid is 32 hexadecimal characters without hyphens, or 16 bytes"
"""The end of messages about values and columns that are not uids."""

_BLOCK = 1 << 11  # uids converted at once, in a core's cache and under the interpreter lock


class InvalidUid(ValueError):
    """Raised for a value that is not a uid.

    Attributes:
        row: the 0-based row of the value.
        value: the value.
        kind: the Arrow type of the column, if it cannot hold uids.
    """

    def __init__(self, row: int, value: object, kind: pa.DataType | None = None) -> None:
        self.row, self.value, self.kind = row, value, kind
        super().__init__(f"row {row} {self.fault}")

    @property
    def fault(self) -> str:
        """A clause about the value, for a message that names the row."""
        of_type = "" if self.kind is None else f" of type {self.kind}"
        return f"has uid {self.value!r}{of_type}: {UID_FORM}"


def holds_uids(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type can be uids: text, or bytes of a length that fits."""
    kind = value_type(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return holds_uids(kind.storage_type)
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width in (16, 32))
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(is_kind(name, kind) for name in names)


def decode_uids(column: pa.Array | pa.ChunkedArray) -> NDArray[np.void]:
    """Convert an Arrow column to a `u8,u8` array [n].

    Args:
        column: an array of a type that `holds_uids`: strings or 32 bytes, the hexadecimal
            characters; or 16 bytes, as `bytes.fromhex` returns.

    Raises:
        InvalidUid: a value is null, has another length, or is not hexadecimal; or the column's
            type holds no uids (row 0).
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    uids = np.empty(len(column), UID_DTYPE)
    row = 0
    for chunk in chunks:
        try:
            _decode_chunk(chunk, uids[row : row + len(chunk)])
        except InvalidUid as error:
            raise InvalidUid(row + error.row, error.value, error.kind) from None
        row += len(chunk)
    return uids


def encode_uids(uids: NDArray[np.void]) -> pa.Array:
    """Convert a `u8,u8` array [n] to an Arrow `large_string` array of lower-case characters."""
    halves = np.ascontiguousarray(uids).view(np.uint64).astype(">u8")
    offsets = np.arange(0, 32 * len(uids) + 1, 32, dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(binascii.hexlify(halves.data))]
    return pa.Array.from_buffers(pa.large_string(), len(uids), buffers)


def format_uid(uid: np.void) -> str:
    """Format a `u8,u8` scalar as 32 characters."""
    return f"{int(uid[0]):016x}{int(uid[1]):016x}"


def _value(chunk: pa.Array, row: int) -> object:
    try:
        return chunk[row].as_py()
    except Exception:  # invalid UTF-8, dates out of Python's range, ...
        return f"a {chunk.type} that cannot be read"


def _decode_chunk(chunk: pa.Array, uids: NDArray[np.void]) -> None:
    if not holds_uids(chunk.type):
        raise InvalidUid(0, _value(chunk, 0) if len(chunk) else None, chunk.type)
    if not len(chunk):
        return
    chunk = plain_array(chunk)
    content, width, wrong = _content(chunk)
    if chunk.null_count or len(wrong):
        nulls = np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))
        row = int(np.concatenate([wrong, nulls]).min())
        raise InvalidUid(row, _value(chunk, row))
    halves = uids.view(np.uint64)
    if width == 16:
        halves[:] = content.view(">u8")
        return
    for start in range(0, len(chunk), _BLOCK):
        digits = content[32 * start : 32 * (start + _BLOCK)]
        try:
            decoded = binascii.unhexlify(digits.data)
        except ValueError:
            row = next(row for row in range(start, len(chunk)) if not _is_uid(content, row))
            raise InvalidUid(row, _value(chunk, row)) from None
        halves[2 * start : 2 * (start + _BLOCK)] = np.frombuffer(decoded, ">u8")


def _is_uid(content: NDArray[np.uint8], row: int) -> bool:
    try:
        binascii.unhexlify(content[32 * row : 32 * (row + 1)].data)
    except ValueError:
        return False
    return True


def _content(chunk: pa.Array) -> tuple[NDArray[np.uint8], int, NDArray[np.intp]]:
    """Return the bytes of all values, their expected length, and the rows of another length."""
    kind = chunk.type
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        content = np.frombuffer(chunk.buffers()[1], np.uint8)
        return content[chunk.offset * width :][: len(chunk) * width], width, np.empty(0, np.intp)
    large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    _, offsets_buffer, characters = chunk.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64 if large else np.int32)
    offsets = offsets[chunk.offset :][: len(chunk) + 1]
    lengths = np.diff(offsets)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    width = 32 if is_text or (lengths == 32).any() else 16
    wrong = np.flatnonzero(lengths != width)
    empty = characters is None  # all values are null or empty
    content = np.empty(0, np.uint8) if empty else np.frombuffer(characters, np.uint8)
    return content[offsets[0] : offsets[-1]], width, wrong
