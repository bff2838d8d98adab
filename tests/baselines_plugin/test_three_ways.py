"""Every method and sampling gives the same bytes in memory, in files, and sorted on Ray."""

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
    gappy_scores,
    outputs,
    small_slices,
)
from tests.baselines_plugin.samplings import IN_MEMORY_ONLY, QUICK, sampled

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    scores = gappy_scores()
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
def test_outputs_are_equal(job: Job, tmp_path: Path, method: str) -> None:
    """The samplings of a method share a folder, which the first of them sorts."""
    subsets = set()
    for index, flags in enumerate(sampled(method)):
        expected = outputs(job, tmp_path / f"memory_{index}", *flags)
        with small_slices() as engine:
            files = (*flags, "--work_dir", tmp_path / "of_files")
            assert outputs(job, tmp_path / f"files_{index}", *files) == expected
        with small_slices(RayEngine(None, 2, "cpu")):
            on_ray = (*flags, "--work_dir", tmp_path / "of_ray", "--engine", "ray")
            assert outputs(job, tmp_path / f"ray_{index}", *on_ray) == expected
        assert bool(engine.names) == (index == 0)
        subsets.add(expected[0]["subset.npy"])
    assert len(subsets) == index + 1, "some samplings give equal subsets"
    sorted_files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.npy")}
        for name in ("of_files", "of_ray")
    ]
    assert sorted_files[0] == sorted_files[1]
    assert len(sorted_files[0]["uids.npy"]) == 128 + 16 * EXAMPLES


def test_the_command_on_ray(job: Job, tmp_path: Path) -> None:
    """The command starts Ray and ends it, and gives the bytes of a selection in memory."""
    job.select(*SCS, *GAPS)
    expected = job.save_path.read_bytes()
    job.save_path.unlink()
    on_ray = (*SCS, *GAPS, "--work_dir", tmp_path / "work", "--engine", "ray")
    ended = as_command(*job.flags(*on_ray))
    assert ended.code == 0, ended.stderr
    assert job.save_path.read_bytes() == expected
    job.save_path.unlink()


@pytest.mark.parametrize(
    "flags",
    [("--engine", "ray"), ("--engine", "processes"), ("--ray_address", "auto")],
)
def test_engine_flags_without_a_work_dir_are_refused(job: Job, flags: tuple[str, ...]) -> None:
    outcome = in_process(*job.flags(*SCS, *flags))
    assert_refused(outcome, f"{flags[0]} says where --work_dir is sorted", "leave")


def test_an_address_without_the_ray_engine_is_refused(job: Job, tmp_path: Path) -> None:
    flags = ("--work_dir", tmp_path / "work", "--ray_address", "auto")
    assert_refused(in_process(*job.flags(*SCS, *flags)), "--ray_address is for --engine ray")
    assert not (tmp_path / "work").exists()


def test_an_address_without_a_cluster_is_refused(job: Job, tmp_path: Path) -> None:
    flags = ("--work_dir", tmp_path / "work", "--engine", "ray", "--ray_address", "127.0.0.1:9")
    outcome = as_command(*job.flags(*SCS, *GAPS, *flags))
    assert_refused(outcome, "--ray_address 127.0.0.1:9: no Ray cluster answers")
    assert not job.save_path.exists()
