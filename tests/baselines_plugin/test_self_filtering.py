"""`--name self_filtering`: copies the last subset of a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.baselines_plugin.finished_run import COUNTS, POOL, run_dir
from tests.baselines_plugin.job import Job, in_process
from tests.conftest import make_pool


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(POOL, tmp_path).write(parts=2, seed=1)


def flags(job: Job, run: Path, *more: object) -> list[str]:
    return job.flags("--name", "self_filtering", "--run_dir", run, *more, table=False)


def test_the_subset_is_that_of_the_run(job: Job) -> None:
    run = run_dir(job.folder / "run")
    assert in_process(*flags(job, run)).code == 0
    assert job.subset_is(COUNTS)
    assert job.save_path.read_bytes() == (run / "subset.npy").read_bytes()


def test_refusals(job: Job) -> None:
    run = run_dir(job.folder / "run")
    cases: list[tuple[list[str], str]] = [
        (job.flags("--name", "self_filtering", table=False), "--run_dir"),
        (flags(job, job.folder), "no run of"),
        (flags(job, run, "--sampling", "scs"), "--sampling"),
        (flags(job, run, "--num_samples", 5), "--num_samples"),
        (flags(job, run, "--column", "FLYT"), "--column"),
        (flags(job, run, "--work_dir", job.folder / "work"), "--work_dir is for methods that mix"),
        (job.flags("--name", "scs", "--run_dir", run), "--run_dir"),
    ]
    (run / "finished.json").rename(run / "hidden")
    assert_refused(flags(job, run), "is not finished")
    (run / "hidden").rename(run / "finished.json")
    for words, named in cases:
        assert_refused(words, named)
    assert not job.save_path.exists()
    assert not (job.folder / "work").exists()
    (run / "subset.npy").write_bytes((run / "subset.npy").read_bytes()[:-16])
    assert_refused(flags(job, run), "is not the subset")


def test_a_subset_of_another_pool_is_refused(job: Job) -> None:
    run = run_dir(job.folder / "run")
    other = Job(make_pool(tag="other"), job.folder / "other").write()
    assert_refused(flags(other, run), "not in the pool")
    assert not other.save_path.exists()


def assert_refused(words: list[str], named: str) -> None:
    code, _, stderr = in_process(*words)
    assert code == 2
    assert named in stderr
    assert len(stderr.splitlines()) == 1
