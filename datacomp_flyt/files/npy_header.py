"""The header of a .npy array: read by many threads, and still one at a time."""

from __future__ import annotations

import io
import struct
import threading
from typing import IO, Any

import numpy as np

_LONGEST = 10_000  # bytes, as NumPy's own limit, which it only looks at when it has read them
_LOCK = threading.Lock()  # CPython 3.11's parser, which NumPy uses, fails now and then in threads


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether stored by columns, and type of the array that begins here.

    Raises:
        Exception: half a dozen kinds of NumPy's, where there is no such header.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    form = "<H" if version == (1, 0) else "<I"
    size = file.read(struct.calcsize(form))
    (length,) = struct.unpack(form, size)
    if length > _LONGEST:
        raise ValueError(f"its header is {length:,} bytes long")
    with _LOCK:
        shape, by_columns, dtype = read(io.BytesIO(size + file.read(length)))
    if min(shape, default=0) < 0:  # NumPy takes any integers
        raise ValueError(f"its header says that its shape is {shape}")
    return shape, by_columns, dtype
