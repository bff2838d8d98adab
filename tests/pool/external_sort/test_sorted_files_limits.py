"""Limits of an external sort: uids that are no hashes, unshared folders, failing storage."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datacomp_flyt.engines import shards
from datacomp_flyt.engines.engine import Outcome, T, TaskFactory
from datacomp_flyt.files.memmap_arrays import create_array, write_rows
from datacomp_flyt.files.open_file import readable
from datacomp_flyt.pool.external_sort import sorted_files, uid_buckets
from datacomp_flyt.pool.external_sort.file_group import FileGroup
from datacomp_flyt.pool.external_sort.sorted_files import sort_into_files
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from tests.conftest import ROWS, hex_uids, refusal, write_files
from tests.engines.here import Here
from tests.pool.external_sort.sorted_job import CLIP, Job, as_read


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path).write()


# ------------------------------------------------------------------- the size of a bucket


@pytest.mark.parametrize("place", ["metadata", "scores"])
def test_uids_that_are_no_hashes(job: Job, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(sorted_files, "_MOST_ROWS", 40)
    assert job.in_files("a", rows=4) == job.in_memory("a")
    numbers = [f"{number:032x}" for number in range(41)]
    columns = {"uid": numbers, "a": np.ones(41), CLIP: np.ones(41, np.float32)}
    write_files(job.folder / place / "z", columns)
    if place == "metadata":
        os.replace(job.metadata / "z/part-00000.parquet", job.metadata / "z.parquet")
    elsewhere = Job(job.folder / "elsewhere")
    elsewhere.folder.mkdir()
    for name in ("metadata", "scores"):
        os.symlink(job.folder / name, elsewhere.folder / name)
    message = refusal(elsewhere.in_files, "a", rows=4, partial=True)
    assert re.search(rf"--{place}_dir .* has 4\d rows in one of", message)
    assert "leave --work_dir out" in message
    elsewhere.in_memory("a", partial=True)


def test_a_table_of_a_larger_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest table determines the number of buckets."""
    job = Job(tmp_path).write()
    others = hex_uids(2000, "others")
    write_files(job.scores / "more", {"uid": others, "a": np.ones(2000), "b": np.ones(2000)}, 4)
    read: list[int] = []

    def reading(runs: Sequence[Path], number: int) -> uid_buckets.Rows:
        rows = uid_buckets.read_bucket(runs, number)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(sorted_files, "read_bucket", reading)
    assert job.in_files("a", rows=100) == job.in_memory("a")
    assert sum(read) == ROWS + ROWS + 2000
    assert 0 < max(read) < 200


def test_two_numbers_of_the_ends_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket's bounds are read from each run, not the whole table of bounds."""
    high = np.random.default_rng(0).integers(0, 2**64, 50, np.uint64)
    rows = uid_buckets.Rows(high, high, {})
    uid_buckets.write_run(tmp_path / "run", rows, 1 << 16)
    read: list[int] = []
    read_items = uid_buckets._read_items

    def reading(file: Any, place: int, number: int, kind: np.dtype[Any]) -> Any:
        read.append(number * kind.itemsize)
        return read_items(file, place, number, kind)

    monkeypatch.setattr(uid_buckets, "_read_items", reading)
    number = int(uid_buckets.bucket_numbers(high[:1], 1 << 16)[0])
    found = uid_buckets.read_bucket([tmp_path / "run"], number)
    assert high[0] in found.high
    assert read == [2 * 8, 16 * len(found)]


# ------------------------------------------------------------------------------- folders


class Elsewhere(Here):
    """A worker that sees another folder under the same path, or no folder."""

    def __init__(self, folder: Path, there: bool) -> None:
        super().__init__()
        self._folder, self._there = folder, there

    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        here = self._folder.with_name("of the driver")
        self._folder.rename(here)
        try:
            if self._there:
                for name in ("partitioned", "done"):
                    (self._folder / name).mkdir(parents=True)
                (self._folder / "job.json").write_bytes((here / "job.json").read_bytes())
            yield from super().run(make, items)
        finally:
            if self._there:
                assert not list((self._folder / "partitioned").iterdir())
                self._folder.rename(here.with_name("of the worker"))
            here.rename(self._folder)


@pytest.mark.parametrize("there", [False, True])
def test_a_worker_that_sees_another_folder(job: Job, there: bool) -> None:
    message = refusal(job.in_files, "a", engine=Elsewhere(job.work, there))
    assert f"--work_dir {job.work} is not the same folder on " in message
    assert "a disk that all nodes share" in message
    assert not list((job.work / "partitioned").iterdir())
    assert job.in_files("a") == job.in_memory("a")


@pytest.mark.parametrize("dtype", ["<u8", "f4", "u8,u8"])
def test_rows_of_an_array_in_a_file(tmp_path: Path, dtype: str) -> None:
    wanted = np.arange(40).astype("u8").astype(dtype)
    create_array(tmp_path / "a.npy", 40, dtype)
    for part in (slice(25, 40), slice(0, 3), slice(7, 7), slice(3, 25)):
        write_rows(tmp_path / "a.npy", part.start, wanted[part])
    assert np.load(tmp_path / "a.npy").tobytes() == wanted.tobytes()
    assert (tmp_path / "a.npy").stat().st_size == 128 + wanted.nbytes


def test_rows_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_array(tmp_path / "a.npy", 4, "f4")

    def full(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", full)
    message = refusal(write_rows, tmp_path / "a.npy", 0, np.ones(4, "f4"))
    assert message == f"{tmp_path / 'a.npy'} cannot be written (Input/output error)"


# ------------------------------------------------------------------------------- storage


FAILURES = 2


class UnsteadyShard(ParquetShard):
    """A file whose first reads fail."""

    def rows(self, columns: Sequence[str]) -> Iterator[Any]:
        mark = Path(f"{self.path}.tried")
        times = int(mark.read_text()) if mark.exists() else 0
        mark.write_text(str(times + 1))
        if times < FAILURES:
            with readable(self.path, "parquet", "download it again"):
                raise OSError(errno.EIO, "the bucket does not answer")
        return super().rows(columns)


@pytest.mark.parametrize("retries", [2, 1])
def test_storage_that_does_not_answer(
    job: Job, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", pauses.append)
    monkeypatch.setattr(sorted_files, "_RETRIES", retries)
    found = open_shards(str(job.metadata), "--metadata_dir", 1)
    odd = UnsteadyShard(**vars(found[1]))
    group = FileGroup("pool", (found[0], odd, found[2]), {CLIP: np.dtype("f4")})
    engine = Here()
    arguments: tuple[Any, ...] = ([group], job.work, engine, False, False, 40)
    if retries == 1:
        assert "the bucket does not answer" in refusal(sort_into_files, *arguments)
    else:
        assert as_read(sort_into_files(*arguments)) == job.in_memory(CLIP)
    assert pauses == [1, 5][:retries]
    partitioned = [name for name in engine.names if name.startswith("0-")]
    assert partitioned == ["0-000000", "0-000001", "0-000002", *["0-000001"] * retries]


def test_a_damaged_file_is_read_once(job: Job) -> None:
    path = job.metadata / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[8:60] = bytes(52)
    path.write_bytes(content)
    engine = Here()
    assert f"{path} " in refusal(job.in_files, CLIP, engine=engine, rows=40)
    assert engine.names == ["0-000000", "0-000001"]  # and nothing after it
