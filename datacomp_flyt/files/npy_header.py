"""Reads the headers of .npy arrays, from any thread."""

from __future__ import annotations

import io
import struct
import threading
from typing import IO, Any

import numpy as np

_LONGEST = 10_000  # bytes: NumPy's own limit, which it checks only after reading them
_LOCK = threading.Lock()  # NumPy uses CPython's parser, which in 3.11 sometimes fails in threads


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header at the file's position.

    Returns:
        the shape, whether the array is in column-major order, and the dtype.

    Raises:
        Exception: of many types; there is no valid header.
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
    if min(shape, default=0) < 0:  # NumPy accepts any integers
        raise ValueError(f"its header says that its shape is {shape}")
    return shape, by_columns, dtype
