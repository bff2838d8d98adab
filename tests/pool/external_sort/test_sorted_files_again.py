"""An external sort resumes after it was killed or its disk was full, and survives lost workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.pool.external_sort import sort_job
from datacomp_flyt.pool.external_sort.file_group import FileGroup
from datacomp_flyt.pool.external_sort.sorted_files import sort_into_files
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from tests.conftest import ROWS, refusal
from tests.engines.here import Here, Killed
from tests.pool.external_sort.sorted_job import CLIP, Job, Read, as_read


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path).write()


# ------------------------------------------------------------------------------ going on


def assert_done(job: Job, found: Read) -> None:
    assert found == job.in_memory("a", "b", CLIP)
    assert not list((job.work / "partitioned").iterdir())
    engine = Here()
    assert job.in_files("a", "b", CLIP, engine=engine) == found
    assert engine.names == []


@pytest.mark.parametrize("seed", range(12))
def test_killed_anywhere(job: Job, seed: int) -> None:
    """The sort is killed after any number of parts and buckets, may lose markers, and resumes."""
    rng, names = np.random.default_rng(seed), ("a", "b", CLIP)
    done: set[str] = set()
    for most in rng.integers(1, 8, 2):
        engine = Here(int(most))
        with pytest.raises(Killed):
            job.in_files(*names, engine=engine)
        assert not done & set(engine.names)
        done = {path.stem for path in (job.work / "done").iterdir()}
        lost = rng.permutation(sorted(done))[: rng.integers(0, 3)].tolist()
        for name in lost:
            (job.work / "done" / f"{name}.json").unlink()
        done -= set(lost)
    for path in (job.work / "partitioned").iterdir():
        if path.name.rpartition("-")[0] not in done:  # its part was half done
            path.unlink() if seed % 2 else path.write_bytes(b"no run")
    (job.work / "partitioned" / ".0-000000-0.run.0123456789abcdef.datacomp_flyt.tmp").write_bytes(
        b"half a run"
    )
    engine = Here()
    assert_done(job, job.in_files(*names, engine=engine))
    assert not done & set(engine.names)


def test_files_of_others_stay(job: Job) -> None:
    """No file of a user is removed, and no temporary file of a killed run is left."""
    ending = "0123456789abcdef.datacomp_flyt.tmp"
    left = (f".job.json.{ending}", f".array.{ending}", f"partitioned/.0-000000-0.run.{ending}")
    others = (".config.json.original", ".lock", "mine/.train.log.download", ".job.json.abcd1234")
    job.in_files("a")
    for name in (*left, *others):
        (job.work / name).parent.mkdir(exist_ok=True)
        (job.work / name).write_bytes(b"mine")
    job.in_files("a")
    assert [name for name in (*left, *others) if (job.work / name).exists()] == list(others)


@pytest.mark.parametrize("name", ["uids.npy", "notes.txt", "partitioned"])
def test_a_folder_of_others_is_refused(job: Job, name: str) -> None:
    job.work.mkdir()
    (job.work / name).write_bytes(b"mine")
    (job.work / ".lock").touch()
    assert f"--work_dir {job.work} holds {name}, which is none of" in refusal(job.in_files, "a")
    assert (job.work / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["job.json", "done/0-000001.json", "done/bucket-00003.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"rows": 16'])
def test_damaged_notes(job: Job, name: str, content: bytes) -> None:
    job.in_files("a")
    (job.work / name).write_bytes(content)
    message = refusal(job.in_files, "a")
    assert f"{job.work / name} cannot be read" in message
    assert f"remove the whole --work_dir {job.work}" in message


def test_a_note_with_another_number(job: Job) -> None:
    with pytest.raises(Killed):
        job.in_files("a", engine=Here(3))
    note = job.work / "done" / "0-000001.json"
    note.write_text(note.read_text().replace("[[", "[[1"))
    assert f"{note} cannot be read as JSON (it has another checksum)" in refusal(job.in_files, "a")


def test_a_folder_of_another_format(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        job.in_files("a", engine=Here(3))
    monkeypatch.setattr(sort_job, "_FORMAT", "datacomp_flyt --work_dir 3")
    assert "before they changed: remove it" in refusal(job.in_files, "a")


def test_slices_that_were_half_sorted(job: Job) -> None:
    """Runs are kept until all buckets are sorted."""
    with pytest.raises(Killed):
        job.in_files("a", "b", CLIP, engine=Here(14))
    buckets = list((job.work / "done").glob("bucket-*"))
    assert len(buckets) > 1
    for path in buckets:
        path.unlink()
    for path in job.work.glob("*.npy"):
        content = path.read_bytes()
        path.write_bytes(content[:128] + b"\xff" * (len(content) - 128))
    assert_done(job, job.in_files("a", "b", CLIP))


def test_a_disk_that_was_full(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "cannot be written (No space left" in refusal(job.in_files, "a", "b", CLIP)
    assert not list(job.work.rglob("*.npy"))
    reserved: list[int] = []
    monkeypatch.setattr(
        os, "posix_fallocate", lambda *of: (reserved.append(of[2]), reserve(*of))[1]
    )
    assert_done(job, job.in_files("a", "b", CLIP))
    assert sorted(reserved) == [128 + 4 * ROWS, *[128 + 8 * ROWS] * 2, 128 + 16 * ROWS]


def test_a_file_that_is_gone_at_the_end(job: Job) -> None:
    """An incomplete column is never used as zeros."""
    job.in_files("a")
    (job.work / "column_0.npy").unlink()
    assert str(job.work) in refusal(job.in_files, "a")


# ------------------------------------------------------------------------------- workers


class KillsOnce(ParquetShard):
    """A file that kills its first reader."""

    def rows(self, columns: Sequence[str]) -> Any:
        mark = Path(self.path).with_suffix(".read")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(columns)


class Noting(ProcessEngine):
    """An engine that records the outcomes."""

    def run(self, make: Any, items: Any) -> Any:
        for outcome in super().run(make, items):
            self.outcomes = [*getattr(self, "outcomes", []), (outcome.item[0], outcome.error)]
            yield outcome


def test_a_killed_worker_costs_its_part_only(job: Job) -> None:
    shards = open_shards(str(job.metadata), "--metadata_dir", 1)
    kills = KillsOnce(**vars(shards[1]))
    group = FileGroup("pool", (shards[0], kills, shards[2]), {CLIP: np.dtype("f4")})
    engine = Noting(1, "cpu")
    found = sort_into_files([group], job.work, engine, False, False, 40)
    assert as_read(found) == job.in_memory(CLIP)
    names = [name for name, _ in engine.outcomes]
    lost = [name for name, error in engine.outcomes if error is not None]
    assert lost == ["0-000001"]
    assert sorted(names) == sorted([*(f"0-{n:06d}" for n in (0, 1, 1, 2)), *bucket_names(3)])


class Kills(ParquetShard):
    """A file that kills each reader."""

    def rows(self, columns: Sequence[str]) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_part_that_loses_each_worker_ends_with_a_way_out(job: Job) -> None:
    shards = open_shards(str(job.metadata), "--metadata_dir", 1)
    group = FileGroup("pool", (Kills(**vars(shards[0])), *shards[1:]), {CLIP: np.dtype("f4")})
    engine = Noting(1, "cpu")
    said = refusal(sort_into_files, [group], job.work, engine, False, False, 40)
    assert [name for name, error in engine.outcomes if error is not None] == ["0-000000"] * 3
    assert "killed (SIGKILL)" in said
    assert said.endswith(": run the same command again")


def bucket_names(number: int) -> list[str]:
    return [f"bucket-{n:05d}" for n in range(number)]


def test_two_workers(job: Job) -> None:
    found = job.in_files("a", "b", CLIP, engine=ProcessEngine(2, "cpu"))
    assert_done(job, found)
