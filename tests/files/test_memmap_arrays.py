"""Memory-mapped arrays have the values of arrays in memory, and leave no files behind."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datacomp_flyt.files import memmap_arrays as file_arrays
from datacomp_flyt.files.memmap_arrays import (
    SpillFile,
    create_array,
    filter_rows,
    order_statistic,
    zeros_like_storage,
)
from tests.conftest import refusal

KINDS = [np.float32, np.float64]
InFile = Callable[[Any], np.ndarray]


@pytest.fixture
def in_file(tmp_path: Path) -> InFile:
    """Map a copy of an array from a file in the test's folder."""

    def write(values: Any) -> np.ndarray:
        values = np.asarray(values)
        array = np.lib.format.open_memmap(tmp_path / "array.npy", "w+", values.dtype, values.shape)
        array[:] = values
        return array

    return write


@pytest.fixture
def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", reserve)


# --------------------------------------------------------------------------------- select


def floats(width: int) -> st.SearchStrategy[float]:
    """Draw any floats, often equal or close ones."""
    few = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 2.0**-149, -(2.0**-149), 0.1]
    any_of = st.floats(allow_nan=False, width=width)
    return any_of | st.sampled_from(few).map(lambda value: float(np.float32(value)))


@pytest.mark.parametrize("width", [32, 64])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_rank_is_that_of_the_sorted_array(
    width: int, data: st.DataObject, in_file: InFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_arrays, "_BLOCK", 4)
    values = np.array(data.draw(st.lists(floats(width), min_size=1)), f"f{width // 8}")
    wanted = np.sort(values).tolist()
    assert [order_statistic(values, rank) for rank in range(len(values))] == wanted
    stored = in_file(values)
    assert [order_statistic(stored, rank) for rank in range(len(values))] == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_floats_are_told_apart(in_file: InFile, kind: type[np.floating]) -> None:
    info = np.finfo(kind)
    ends = [-info.max, -info.tiny, -info.smallest_subnormal, 0, info.smallest_subnormal, info.max]
    values = np.array([np.nextafter(kind(end), kind(to)) for end in ends for to in (0, 1e30)], kind)
    stored = in_file(np.concatenate([values, ends]).astype(kind)[::-1])
    for rank, value in enumerate(np.sort(stored).tolist()):
        found = order_statistic(stored, rank)
        assert found == value
        assert found == kind(found)


@pytest.mark.parametrize("kind", KINDS)
def test_many_draws_in_a_few_passes(
    in_file: InFile, kind: type[np.floating], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(0, 1, 100_000).astype(kind)
    stored, looked = in_file(values), []
    bits = file_arrays._ordered_bits
    monkeypatch.setattr(file_arrays, "_ordered_bits", lambda *of: (looked.append(1), bits(*of))[1])
    assert order_statistic(stored, 70_001) == np.sort(values)[70_001]
    assert 1 < len(looked) <= np.dtype(kind).itemsize // 2


# --------------------------------------------------------------------- beside and create_array


def test_beside_an_array_in_memory(tmp_path: Path) -> None:
    for array in (np.ones(7, np.float32), np.ones(7)[1:], np.zeros(0)):
        found = zeros_like_storage(array, np.int32)
        assert type(found) is np.ndarray
        assert (found.dtype, found.tolist()) == (np.int32, [0] * len(array))


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itself": lambda array: array,
    "slice": lambda array: array[2:5],
    "steps": lambda array: array[::-2],
    "view": lambda array: array.view(np.uint64),
    "plain": np.asarray,
    "plain slice": lambda array: np.asarray(array)[1:][1:],
    "contiguous": np.ascontiguousarray,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_beside_an_array_in_a_file(in_file: InFile, tmp_path: Path, view: Any) -> None:
    array = view(in_file(np.arange(7.0)))
    found = zeros_like_storage(array, np.dtype("u8,u8"))
    assert isinstance(found, np.memmap)
    assert Path(found.filename).parent == tmp_path
    assert found.tolist() == [(0, 0)] * len(array)
    found[1] = (2**64 - 1, 5)
    assert found[1].tolist() == (2**64 - 1, 5)
    assert isinstance(zeros_like_storage(found[:2], np.int8, 3), np.memmap)
    assert [path.name for path in tmp_path.iterdir()] == ["array.npy"]


def test_what_is_computed_of_a_file_is_in_memory(in_file: InFile) -> None:
    array = in_file(np.arange(7.0))
    for computed in (array + 1, array[array > 2], array.copy(), array[[1, 2]]):
        assert not isinstance(zeros_like_storage(computed, np.int32), np.memmap)
    assert not isinstance(
        zeros_like_storage(array, np.int32, 0), np.memmap
    )  # nothing can be mapped


def test_open_array(tmp_path: Path) -> None:
    array = create_array(tmp_path / "a.npy", 5, np.dtype("u8,u8"))
    array[3] = (1, 2)
    array.flush()
    found = np.load(tmp_path / "a.npy")
    assert found.tolist() == [(0, 0)] * 3 + [(1, 2), (0, 0)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk(in_file: InFile, tmp_path: Path) -> None:
    array = in_file(np.arange(7.0))
    message = refusal(zeros_like_storage, array, np.float64)
    assert f"{tmp_path} has no room for 56 bytes more" in message
    assert "No space left" in message
    message = refusal(create_array, tmp_path / "b.npy", 5, np.float32)
    assert f"{tmp_path / 'b.npy'} cannot be written (No space left" in message
    assert [path.name for path in tmp_path.iterdir()] == ["array.npy"]


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no" / "a.npy"
    assert f"{path} cannot be written" in refusal(create_array, path, 5, np.float32)


# ------------------------------------------------------------------------------- filter_rows


@pytest.mark.parametrize("files", [False, True])
@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("least", [-1, 0, 4, 10])
def test_rows_that_are_kept(
    in_file: InFile, files: bool, block: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_arrays, "_BLOCK", block)
    values = np.random.default_rng(1).permutation(10).astype(np.float32)
    first = in_file(values) if files else values.copy()
    second = np.arange(10, dtype=np.int8)
    given = (first, second)
    found = filter_rows(given, lambda some: some >= least)
    kept = values >= least
    assert [array.tolist() for array in found] == [values[kept].tolist(), second[kept].tolist()]
    assert [array.dtype for array in found] == [np.float32, np.int8]
    assert (found is given) == (least <= 0)
    assert isinstance(found[0], np.memmap) == (files and least < 10)
    assert first.tolist() == values.tolist()


# ---------------------------------------------------------------------------------- shelf


@pytest.mark.parametrize("files", [False, True])
def test_what_a_shelf_gives_back(in_file: InFile, tmp_path: Path, files: bool) -> None:
    kind = np.dtype([("a", "f8"), ("b", "u4")])
    beside_this = in_file(np.zeros(3)) if files else np.zeros(3)
    shelf = SpillFile(beside_this, kind)
    assert shelf.in_memory is not files
    arrays = [np.zeros(number, kind) for number in (5, 0, 1, 400)]
    for array in arrays:
        array["a"], array["b"] = np.random.default_rng(2).random(len(array)), len(array)
    wanted = [array.tolist() for array in arrays]
    pieces = [shelf.put(array[::-1]) for array in arrays]
    for array in arrays:
        array["b"] = 7  # what was put is a copy
    for piece, values in reversed(list(zip(pieces, wanted, strict=True))):
        found = shelf.get(piece)
        assert (piece.length, found.tolist()) == (len(values), values[::-1])
    assert shelf.get(shelf.put(arrays[0])).tolist() == arrays[0].tolist()
    assert shelf.get(pieces[3]).tolist() == wanted[3][::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["array.npy"] * files


def test_a_full_disk_of_a_shelf(
    in_file: InFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, dir: Path, buffering: int) -> None:
            pass

        def seek(self, place: int) -> None:
            pass

        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            self.write(b"what is left")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    shelf = SpillFile(in_file(np.zeros(3)), np.float64)
    message = refusal(shelf.put, np.zeros(3))
    assert f"{tmp_path} cannot be written (No space left" in message
    del shelf  # in peace


class InParts(io.FileIO):
    """A file that reads and writes at most 100 bytes at once, and may lose its end.

    Attributes:
        end: where it ends; None for where it does.
        broken: whether reading fails.
    """

    end: int | None = None
    broken = False

    def __init__(self, dir: Path, buffering: int) -> None:
        super().__init__(dir / "shelf", "w+")

    def write(self, content: Any) -> int:
        return super().write(content[:100])

    def readinto(self, room: Any) -> int:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left = len(room) if self.end is None else self.end - self.tell()
        return super().readinto(room[: min(left, 100)])


def test_a_disk_that_gives_less_back(
    in_file: InFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", InParts)
    shelf = SpillFile(in_file(np.zeros(3)), np.float64)
    pieces = [shelf.put(np.arange(start, start + 100.0)) for start in (0, 100)]
    assert shelf.get(pieces[1]).tolist() == np.arange(100.0, 200).tolist()
    monkeypatch.setattr(InParts, "end", 1592)
    assert len(shelf.get(pieces[0])) == 100
    assert f"{tmp_path} cannot be read (a temporary file there" in refusal(shelf.get, pieces[1])
    monkeypatch.setattr(InParts, "broken", True)
    assert f"{tmp_path} cannot be read (Input/output" in refusal(shelf.get, pieces[0])


@pytest.mark.parametrize("files", [False, True])
def test_a_part_of_what_was_put_aside(in_file: InFile, files: bool) -> None:
    shelf = SpillFile(in_file(np.zeros(3)) if files else np.zeros(3), np.int64)
    shelf.put(np.arange(5))
    piece = shelf.put(np.arange(10, 20))
    assert shelf.get(piece, 3, 5).tolist() == [13, 14]
    assert shelf.get(piece, 8).tolist() == [18, 19]
    rest = shelf.rest(piece, 7)
    assert (rest.length, shelf.get(rest).tolist()) == (3, [17, 18, 19])
    assert shelf.get(rest, 1, 2).tolist() == [18]
    assert shelf.get(shelf.rest(rest, 3)).tolist() == []
    if not files:
        assert rest.values is not None
        assert rest.values.base is None  # the room of the others is free
