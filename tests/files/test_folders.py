"""Folders whose storage fails for a moment, or always."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datacomp_flyt import threads
from datacomp_flyt.errors import InputError, ReadError
from datacomp_flyt.files import folders
from datacomp_flyt.files.folders import check_unchanged, list_folder
from tests.conftest import refusal


class EndpointError(Exception):
    """An error of a cloud's client that is no OSError."""


ERRORS = [EndpointError("503"), TimeoutError("no answer"), OSError(errno.ESTALE, "Stale")]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(threads.time, "sleep", found.append)
    return found


def fail(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int) -> None:
    """Make a method of the memory filesystem raise a number of times."""
    real, left = getattr(MemoryFileSystem, name), [error] * times

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return real(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, name, failing)


def made(where: str) -> folders.Folder:
    fs = MemoryFileSystem()
    for name in ("a.parquet", "b.parquet"):
        fs.pipe_file(f"{where}/{name}", b"1")
    return list_folder(where, "--metadata_dir", (".parquet",))


@pytest.mark.parametrize("many", [0, 100], ids=["listed", "asked for"])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_check_is_patient(
    memory_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    error: Exception,
    many: int,
) -> None:
    folder = made(memory_folder)
    monkeypatch.setattr(folders, "_MANY", many)
    method = "info" if many else "ls"
    fail(monkeypatch, method, error, 2)
    check_unchanged(folder.fs, folder.versions)
    assert slept == [0.1, 1.0]
    fail(monkeypatch, method, error, 99)
    with pytest.raises(ReadError, match="cannot be said") as caught:
        check_unchanged(folder.fs, folder.versions)
    assert str(error) in str(caught.value)


def test_a_folder_that_is_gone(
    memory_folder: str, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    folder = made(memory_folder)
    monkeypatch.setattr(folders, "_MANY", 0)
    folder.fs.rm(folder.root, recursive=True)
    said = refusal(check_unchanged, folder.fs, folder.versions)
    assert "a.parquet was there when this run began to read" in said
    assert slept == []


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_listing_is_patient(
    memory_folder: str, monkeypatch: pytest.MonkeyPatch, slept: list[float], error: Exception
) -> None:
    folder = made(memory_folder)
    fail(monkeypatch, "ls", error, 2)
    again = list_folder(memory_folder, "--metadata_dir", (".parquet",))
    assert again.versions == folder.versions
    assert slept == [0.1, 1.0]
    fail(monkeypatch, "ls", error, 99)
    with pytest.raises(ReadError, match=f"--metadata_dir {memory_folder} cannot be listed"):
        list_folder(memory_folder, "--metadata_dir", (".parquet",))


def test_links_that_lead_nowhere(tmp_path: Path, slept: list[float]) -> None:
    """A missing npz is reported by its reader, a missing table at once."""
    (tmp_path / "a.parquet").write_bytes(b"1")
    (tmp_path / "a.npz").symlink_to(tmp_path / "gone")
    found = list_folder(str(tmp_path), "--metadata_dir", (".parquet", ".npz"))
    assert list(found.versions) == [str(tmp_path / "a.parquet")]
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"b\.parquet"):
        list_folder(str(tmp_path), "--metadata_dir", (".parquet", ".npz"))
    assert slept == []
