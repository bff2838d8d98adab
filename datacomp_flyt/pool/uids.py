"""uids: 32 hexadecimal characters <-> the `u8,u8` pairs that DataComp's resharder compares.

Conversion runs on Arrow's character buffers, eight characters to a 64-bit word at a time, some
18 times faster than `int(uid[:16], 16), int(uid[16:32], 16)` row by row.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

UID_DTYPE = np.dtype("u8,u8")
"""(first 16 characters, last 16 characters) as unsigned integers; sorts as the characters do."""

_BLOCK = 1 << 14  # uids whose words stay in a core's cache
_ONES = 0x0101010101010101
_PAIRS = 0x00FF00FF00FF00FF
_FOURS = 0x0000FFFF0000FFFF


class InvalidUid(ValueError):
    """A value that is not a uid: `row` (0-based) and `value`."""

    def __init__(self, row: int, value: object) -> None:
        super().__init__(f"row {row} has uid {value!r}, not 32 hexadecimal characters")
        self.row, self.value = row, value


def decode_uids(strings: pa.Array | pa.ChunkedArray) -> NDArray[np.void]:
    """uids of an Arrow string column as a `u8,u8` array [n].

    Raises:
        InvalidUid: a value is null, not of 32 characters, or not hexadecimal; or the column does
            not hold strings (row 0).
    """
    chunks = strings.chunks if isinstance(strings, pa.ChunkedArray) else [strings]
    uids = np.empty(len(strings), UID_DTYPE)
    row = 0
    for chunk in chunks:
        try:
            _decode_chunk(chunk, uids[row : row + len(chunk)])
        except InvalidUid as error:
            raise InvalidUid(row + error.row, error.value) from None
        row += len(chunk)
    return uids


def encode_uids(uids: NDArray[np.void]) -> pa.Array:
    """`u8,u8` array [n] as an Arrow `large_string` array of lower-case 32-character strings."""
    halves = np.ascontiguousarray(uids).view(np.uint64)
    words = np.empty((len(halves), 2), np.uint64)
    words[:, 0] = _hex_characters(halves >> np.uint64(32))
    words[:, 1] = _hex_characters(halves & np.uint64(0xFFFFFFFF))
    offsets = np.arange(0, 32 * len(uids) + 1, 32, dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(words.astype("<u8", copy=False))]
    return pa.Array.from_buffers(pa.large_string(), len(uids), buffers)


def format_uid(uid: np.void) -> str:
    """One `u8,u8` scalar as 32 characters."""
    return f"{int(uid[0]):016x}{int(uid[1]):016x}"


def _value(chunk: pa.Array, row: int) -> object:
    try:
        return chunk[row].as_py()
    except Exception:  # text that is no UTF-8, dates beyond Python's: each type has its own
        return f"a {chunk.type} that cannot be read"


def _decode_chunk(chunk: pa.Array, uids: NDArray[np.void]) -> None:
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    if pa.types.is_large_string(chunk.type):
        offset_dtype: type[np.signedinteger] = np.int64
    elif pa.types.is_string(chunk.type):
        offset_dtype = np.int32
    else:
        raise InvalidUid(0, _value(chunk, 0) if len(chunk) else None)
    if not len(chunk):
        return
    _, offsets_buffer, characters = chunk.buffers()
    offsets = np.frombuffer(offsets_buffer, offset_dtype)[chunk.offset :][: len(chunk) + 1]
    wrong = np.flatnonzero(np.diff(offsets) != 32)
    if chunk.null_count or len(wrong):
        nulls = np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))
        row = int(np.concatenate([wrong, nulls]).min())
        raise InvalidUid(row, _value(chunk, row))
    words = np.frombuffer(characters, np.uint8)[offsets[0] : offsets[-1]].view("<u8")
    halves = uids.view(np.uint64)
    for start in range(0, len(chunk), _BLOCK):
        digits = words[4 * start : 4 * (start + _BLOCK)]
        values, valid = _hex_values(digits)
        if not valid.all():
            row = start + int(valid.argmin()) // 4
            raise InvalidUid(row, _value(chunk, row))
        np.bitwise_or(
            values[0::2] << np.uint64(32),
            values[1::2],
            out=halves[2 * start : 2 * start + len(digits) // 2],
        )


def _hex_values(words: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Values below 2**32 of words of eight characters, first lowest; and whether all are digits."""
    letters = (words >> np.uint64(6)) & np.uint64(_ONES)
    nibbles = (words & np.uint64(0x0F * _ONES)) + letters * np.uint64(9)
    # spelt out again, only hexadecimal digits come back as they were
    changed = _spell(nibbles) ^ (words | letters << np.uint64(5))
    valid = (changed | nibbles & np.uint64(0xF0 * _ONES)) == 0
    pairs = (nibbles << np.uint64(4) | nibbles >> np.uint64(8)) & np.uint64(_PAIRS)
    fours = (pairs << np.uint64(8) | pairs >> np.uint64(16)) & np.uint64(_FOURS)
    return (fours << np.uint64(16) | fours >> np.uint64(32)) & np.uint64(0xFFFFFFFF), valid


def _hex_characters(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words of eight characters from values below 2**32: the inverse of `_hex_values`."""
    fours = (values >> np.uint64(16) | values << np.uint64(32)) & np.uint64(_FOURS)
    pairs = (fours >> np.uint64(8) | fours << np.uint64(16)) & np.uint64(_PAIRS)
    return _spell((pairs >> np.uint64(4) | pairs << np.uint64(8)) & np.uint64(0x0F * _ONES))


def _spell(nibbles: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """ASCII digits or lower-case letters of the eight numbers below 16 in each word."""
    above_nine = ((nibbles + np.uint64(6 * _ONES)) >> np.uint64(4)) & np.uint64(_ONES)
    return nibbles + np.uint64(0x30 * _ONES) + above_nine * np.uint64(0x27)
