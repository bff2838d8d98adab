"""Reads that fail or return too few bytes: a single one has no effect, lasting ones are refused."""

from __future__ import annotations

import errno
import functools
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datacomp_flyt import threads
from datacomp_flyt.engines import shards
from datacomp_flyt.mixing import columns_in_files
from datacomp_flyt.pool.external_sort.sorted_files import sort_into_files
from datacomp_flyt.scorers.e_flyt.glu_head_file import save_glu_head
from datacomp_flyt.selection import open_pool
from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.conftest import make_pool
from tests.engines.here import Here
from tests.faults import faulty
from tests.scorers.base.made import B32, made_embeddings, made_head

POOL = make_pool(600)
DRAWS = ("--num_samples", 900, "--repetition_penalty", 0.4)
MIX = ("--name", "m_flyt", "--scoring_model", "paper", *DRAWS)
FLYT = ("--name", "e_flyt", "--scoring_model", "head.safetensors", *DRAWS)
FAULTS = ("EIO", "short")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a pool and its scores in `faulty://`, and a head in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threads, "_PAUSES", (0, 0))
    monkeypatch.setattr(shards, "_PAUSE", 0)
    monkeypatch.setattr(open_pool, "choose_engine", lambda *_: Here())
    monkeypatch.setattr(
        columns_in_files,
        "sort_into_files",
        lambda *args: sort_into_files(*args, rows_at_once=200),
    )
    job = Job(POOL, tmp_path).write(2)
    for seed, path in enumerate(sorted(job.metadata.iterdir())):
        np.savez(path.with_suffix(".npz"), **made_embeddings(300, dict.fromkeys(B32, 4), seed))
    save_glu_head(made_head(8), tmp_path / "head.safetensors")
    faulty.upload(job.metadata, "metadata")
    faulty.upload(job.scores, "scores")
    return tmp_path


def select(*flags: object) -> Any:
    options = ["--metadata_dir", "faulty://metadata", "--save_path", "subset.npy"]
    if flags[1] == "m_flyt":
        options += ["--scores_dir", "faulty://scores"]
    return in_process(*map(str, flags), *options, "--num_workers", "1")


JOBS = {"memory": MIX, "files": (*MIX, "--work_dir"), "npz": FLYT}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", JOBS)
def test_once(folder: Path, case: str, fault: str) -> None:
    """Any single read may fail."""
    folders = iter(range(1000))

    def flags() -> tuple[object, ...]:
        return (*JOBS[case], f"work{next(folders)}") if case == "files" else JOBS[case]

    faulty.plan(lambda path, number: None)
    assert select(*flags()).code == 0
    expected = Path("subset.npy").read_bytes()
    reads = [(path, n) for path, times in sorted(faulty.reads().items()) for n in range(times)]
    assert len(reads) > 10
    for read in reads[:: max(len(reads) // 12, 1)]:
        Path("subset.npy").unlink()
        faulty.plan(lambda path, number, at=read: fault if (path, number) == at else None)
        outcome = select(*flags())
        assert (outcome.code, outcome.stderr) == (0, ""), read
        assert Path("subset.npy").read_bytes() == expected, read


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", JOBS)
def test_always(folder: Path, case: str, fault: str) -> None:
    """All reads of a file fail, or only the last one and its retries."""
    folders = iter(range(1000))  # a work folder that is used again reads less

    def flags() -> tuple[object, ...]:
        return (*JOBS[case], f"work{next(folders)}") if case == "files" else JOBS[case]

    assert select(*flags()).code == 0
    Path("subset.npy").unlink()
    times = faulty.reads()
    for name, suffix in (("metadata", "npz"),) if case == "npz" else _TABLES:
        bad = f"/{name}/part-00001.{suffix}"
        for first_bad in (0, times[bad] - 1):
            plan = functools.partial(_from, bad, first_bad, fault)
            faulty.plan(plan)
            # zipfile does not report the reason
            reasons = ["Input/output error"] if fault == "EIO" and case != "npz" else []
            assert_refused(select(*flags()), bad, *reasons)
            assert not Path("subset.npy").exists()
            assert not [path for path in folder.rglob(".*") if path.is_file()]


_TABLES = (("metadata", "parquet"), ("scores", "parquet"))


def _from(bad: str, first_bad: int, fault: str, path: str, number: int) -> str | None:
    return fault if path == bad and number >= first_bad else None


def test_pauses_before_retries(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Read errors are retried after pauses; damaged content is not."""
    slept: list[float] = []
    monkeypatch.setattr(threads, "_PAUSES", (0.1, 1.0))
    monkeypatch.setattr(threads.time, "sleep", slept.append)
    bad = "/metadata/part-00001.parquet"
    faulty.plan(lambda path, number: "EIO" if path == bad else None)
    assert select(*MIX).code == 2
    assert slept == [0.1, 1.0]
    slept.clear()
    faulty.FaultyFileSystem.store[bad].seek(0)
    faulty.FaultyFileSystem.store[bad].truncate(1000)
    faulty.plan(lambda path, number: None)
    assert select(*MIX).code == 2
    assert slept == []


@pytest.mark.parametrize("fault", FAULTS)
def test_score(folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A shard that cannot be read is retried, and the other shards are scored."""
    pytest.importorskip("torch")
    from datacomp_flyt.cli import main
    from datacomp_flyt.scorers.base import score as scoring
    from tests.cli.scoring import files_in

    monkeypatch.setattr(scoring, "make_engine", lambda *_, **__: Here())

    def score(name: str) -> int:
        flags = ("--metadata_dir", "faulty://metadata", "--source", "npz", "--retries", "1")
        with pytest.raises(SystemExit) as ended:
            main(["score", "--scorer", "clip_score", "--scores_dir", name, *flags])
        return int(ended.value.code or 0)

    faulty.plan(lambda path, number: None)
    assert score("whole") == 0
    bad = "/metadata/part-00000.npz"
    times = faulty.reads()[bad]
    for at in range(0, times, max(times // 6, 1)):
        faulty.plan(lambda path, number, at=at: fault if (path, number) == (bad, at) else None)
        assert score(f"once{at}") == 0
        assert files_in(folder / f"once{at}") == files_in(folder / "whole")
    capsys.readouterr()
    faulty.plan(lambda path, number: fault if path == bad else None)
    assert score("always") == 1
    assert f"shard part-00000 failed: {bad} cannot be read" in capsys.readouterr().err
    tables = [name for name in files_in(folder / "always") if name.endswith(".parquet")]
    assert [Path(name).stem for name in tables] == ["part-00001"]
    faulty.plan(lambda path, number: None)
    assert score("always") == 0
    assert files_in(folder / "always") == files_in(folder / "whole")


class Stream(io.BytesIO):
    """A stream that returns few bytes at a time, and fails at an offset if requested."""

    def __init__(self, content: bytes, fails_at: int | None = None) -> None:
        super().__init__(content)
        self.fails_at = fails_at

    def read(self, size: int | None = -1) -> bytes:
        if self.fails_at is not None and self.tell() >= self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(min(size or 0, 700) if size and size > 0 else size)


def append_each(read: list[Any], samples: Iterable[Any]) -> None:
    """Append one by one: `list.extend` may lose the samples before an error."""
    for sample in samples:
        read.append(sample)


def test_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow stream gives the same samples; an error is raised after the samples before it."""
    pytest.importorskip("webdataset")
    from datacomp_flyt.demo import POOL as DEMO
    from datacomp_flyt.tars import samples as tar_samples

    path = sorted((DEMO / "shards").glob("*.tar"))[0]
    content, whole = path.read_bytes(), list(tar_samples.read_tar(str(path)))
    monkeypatch.setattr(tar_samples, "open_tar", lambda tar: Stream(content))
    assert list(tar_samples.read_tar(str(path))) == whole
    for share in (0.0, 0.3, 0.9):
        offset = int(share * len(content))
        monkeypatch.setattr(
            tar_samples, "open_tar", lambda tar, offset=offset: Stream(content, offset)
        )
        read: list[Any] = []
        with pytest.raises(tar_samples.UnreadableShard, match="Input/output error"):
            append_each(read, tar_samples.read_tar(str(path)))
        assert read == whole[: len(read)]
        assert share / 2 * len(whole) <= len(read) < len(whole)
