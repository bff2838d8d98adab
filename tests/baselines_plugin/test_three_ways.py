"""Every method and every sampling: the same bytes in memory, in files, and sorted on Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.engines.ray_cluster import RayEngine
from datacomp_flyt.selection.registry import METHODS
from tests.baselines_plugin.job import Job, as_command, assert_refused, in_process
from tests.baselines_plugin.large_pool import (
    EXAMPLES,
    GAPS,
    POOL,
    SCS,
    outputs,
    small_slices,
    spoilt,
)
from tests.baselines_plugin.samplings import IN_MEMORY_ONLY, QUICK, sampled

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    scores = spoilt()
    scores["normsim_d"] = np.arange(len(scores["vas"])) % 90  # type: ignore[arg-type]
    return Job(POOL._replace(scores=scores), tmp_path_factory.mktemp("pool")).write(3, 4)


@pytest.fixture(scope="module")
def _local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_local_ray")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in METHODS
        if name not in IN_MEMORY_ONLY
    ],
)
def test_bytes(job: Job, tmp_path: Path, method: str) -> None:
    """Samplings of one method are of one folder, which the first of them has sorted."""
    subsets = set()
    for number, flags in enumerate(sampled(method)):
        wanted = outputs(job, tmp_path / f"memory_{number}", *flags)
        with small_slices() as here:
            files = (*flags, "--work_dir", tmp_path / "of_files")
            assert outputs(job, tmp_path / f"files_{number}", *files) == wanted
        with small_slices(RayEngine(None, 2, "cpu")):
            on_ray = (*flags, "--work_dir", tmp_path / "of_ray", "--engine", "ray")
            assert outputs(job, tmp_path / f"ray_{number}", *on_ray) == wanted
        assert bool(here.names) == (number == 0)
        subsets.add(wanted[0]["subset.npy"])
    assert len(subsets) == number + 1, "samplings differ"
    sorted_ = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.npy")}
        for name in ("of_files", "of_ray")
    ]
    assert sorted_[0] == sorted_[1]
    assert len(sorted_[0]["uids.npy"]) == 128 + 16 * EXAMPLES


def test_ray_of_the_command(job: Job, tmp_path: Path) -> None:
    """As people run it: Ray is started, and ends."""
    job.select(*SCS, *GAPS)
    wanted = job.save_path.read_bytes()
    job.save_path.unlink()
    on_ray = (*SCS, *GAPS, "--work_dir", tmp_path / "work", "--engine", "ray")
    ended = as_command(*job.flags(*on_ray))
    assert ended.code == 0, ended.stderr
    assert job.save_path.read_bytes() == wanted
    job.save_path.unlink()


@pytest.mark.parametrize(
    "flags",
    [("--engine", "ray"), ("--engine", "processes"), ("--ray_address", "auto")],
)
def test_flags_that_nothing_would_read(job: Job, flags: tuple[str, ...]) -> None:
    outcome = in_process(*job.flags(*SCS, *flags))
    assert_refused(outcome, f"{flags[0]} says where --work_dir is sorted", "leave")


def test_an_address_without_ray(job: Job, tmp_path: Path) -> None:
    flags = ("--work_dir", tmp_path / "work", "--ray_address", "auto")
    assert_refused(in_process(*job.flags(*SCS, *flags)), "--ray_address is for --engine ray")
    assert not (tmp_path / "work").exists()


def test_no_cluster(job: Job, tmp_path: Path) -> None:
    flags = ("--work_dir", tmp_path / "work", "--engine", "ray", "--ray_address", "127.0.0.1:9")
    outcome = as_command(*job.flags(*SCS, *GAPS, *flags))
    assert_refused(outcome, "--ray_address 127.0.0.1:9: no Ray cluster answers")
    assert not job.save_path.exists()
