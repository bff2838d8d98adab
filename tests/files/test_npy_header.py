"""Headers of .npy arrays."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest

from datacomp_flyt.files.npy_header import read_npy_header

HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }"


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers_that_numpy_writes(version: tuple[int, int]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros((3, 2), np.float32), version)
    file.seek(0)
    assert read_npy_header(file) == ((3, 2), False, np.dtype("<f4"))
    assert file.read() == bytes(24)


def test_a_long_header_is_not_read() -> None:
    """NumPy reads a header, of up to 4 GB, before it refuses its length."""
    length = 1 << 24
    file = io.BytesIO(np.lib.format.magic(2, 0) + struct.pack("<I", length) + bytes(length))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its header is 16,777,216 bytes long"):
            read_npy_header(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_negative_shape() -> None:
    header = HEADER.replace(b"3, 2", b"-3, 2").ljust(117) + b"\n"
    file = io.BytesIO(np.lib.format.magic(1, 0) + struct.pack("<H", len(header)) + header)
    with pytest.raises(ValueError, match=r"\(-3, 2\)"):
        read_npy_header(file)
