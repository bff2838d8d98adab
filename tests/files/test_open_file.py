"""Files whose reads return less than was requested."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.errors import InputError, ReadError, unreadable
from datacomp_flyt.files.open_file import open_file, readable
from tests.faults import faulty

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def fs(tmp_path: Path) -> object:
    (tmp_path / "a").write_bytes(CONTENT)
    np.savez(tmp_path / "a.npz", a=np.arange(1000))
    pq.write_table(pa.table({"a": range(1000)}), tmp_path / "a.parquet")
    faulty.upload(tmp_path, "files")
    return fsspec.filesystem("faulty")


@pytest.mark.parametrize("size", [0, 7, 5000, len(CONTENT), len(CONTENT) + 9, -1, None])
def test_reads_are_whole(fs: object, size: int | None) -> None:
    faulty.plan(lambda path, number: None if number % 4 == 3 else "short")
    with open_file(fs, "/files/a") as file:
        file.seek(3)
        wanted = io.BytesIO(CONTENT)
        wanted.seek(3)
        assert file.read(size) == wanted.read(size)
        assert file.tell() == wanted.tell()


def test_nothing_is_not_the_end(fs: object) -> None:
    with open_file(fs, "/files/a") as file:
        faulty.plan(lambda path, number: "short")
        with pytest.raises(OSError, match="nothing came of bytes 99 to 10,240") as caught:
            file.read(100)
    assert type(unreadable("", caught.value)) is ReadError


def test_readers(fs: object) -> None:
    faulty.plan(lambda path, number: "short" if number % 2 == 0 else None)
    with open_file(fs, "/files/a.npz") as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
    with open_file(fs, "/files/a.parquet") as file:
        assert pq.read_table(file)["a"].to_pylist() == list(range(1000))
    assert len(faulty.reads()) == 2
    assert file.closed


def test_damage_is_not_of_storage(tmp_path: Path) -> None:
    """Flip a bit in a header of a zip or of the array in it."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(3))
    content, said = path.read_bytes(), set()
    for place in range(len(content)):
        for bit in (0, 3, 7):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            try:
                with readable("a.npz", "npz", "download it again"):
                    np.load(io.BytesIO(changed), allow_pickle=False)["a"]
            except InputError as error:
                said.add((type(error), str(error)))
    assert len(said) > 10
    assert {kind for kind, _ in said} == {InputError}


@pytest.mark.parametrize("error", [MemoryError(), pa.lib.ArrowMemoryError("malloc failed")])
def test_too_little_memory_is_no_damage(error: Exception) -> None:
    said = "not enough memory to read it as npz"
    with pytest.raises(InputError, match=said) as caught, readable("a.npz", "npz", "try it"):
        raise error
    assert "cannot be read" not in str(caught.value)
