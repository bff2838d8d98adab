"""With `--work_dir`, every output is byte for byte that of the same command in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.files.locks import lock_outputs
from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.baselines_plugin.large_pool import (
    EXAMPLES,
    GAPS,
    M_FLYT,
    ON_FLYT,
    POOL,
    ROUNDS,
    SCS,
    TOP,
    TWO_STAGE,
    gappy_scores,
    outputs,
    small_slices,
)
from tests.conftest import PUBLISHED, write_files

COMMANDS: dict[str, tuple[object, ...]] = {
    "scs": SCS,
    "scs G 40": ROUNDS,
    "scs all": (*SCS, "--sampling_batch_size", EXAMPLES),
    "hcs": ("--name", "hcs", *ON_FLYT, "--num_samples", 3000, "--frequency_limit", 5),
    "no_cap": ("--name", "no_cap", *ON_FLYT, "--num_samples", 3000),
    "top_fraction": TOP,
    "top_fraction with ties": (*TOP, "--keep_ties"),
    "m_flyt": M_FLYT,
    "m_flyt G 40": (*M_FLYT, "--sampling_batch_size", 40),
    "sum": ("--name", "plain_sum", "--score_columns", "vas", "vit-l-14", *SCS[4:]),
    "in_weighted_sum": ("--name", "in_weighted_sum", *SCS[4:]),
    "two stages": TWO_STAGE,
    "two stages scs": (*TWO_STAGE[:2], *SCS[4:]),
    "two stages G 40": (*TWO_STAGE[:2], *ROUNDS[4:]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    scores = {**POOL.scores, "FLYT": np.round(POOL.scores["FLYT"], 1)}
    scores["vas"] = np.arange(EXAMPLES) % 7
    return Job(POOL._replace(scores=scores), tmp_path_factory.mktemp("whole")).write(3, 4)


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(POOL._replace(scores=gappy_scores()), tmp_path_factory.mktemp("gaps")).write(3, 4)


# ----------------------------------------------------------------------- equal outputs


@pytest.mark.parametrize("case", COMMANDS)
def test_bytes_of_the_whole_pool(whole: Job, tmp_path: Path, case: str) -> None:
    flags = COMMANDS[case]
    expected = outputs(whole, tmp_path / "memory", *flags)
    with small_slices() as engine:
        actual = outputs(whole, tmp_path / "files", *flags, "--work_dir", tmp_path / "work")
    assert actual == expected
    assert len(expected[0]) in (2, 3)
    assert sum(name.startswith("bucket") for name in engine.names) == 14


@pytest.mark.parametrize("case", COMMANDS)
@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_of_a_pool_with_gaps(gaps: Job, tmp_path: Path, case: str, workers: int) -> None:
    flags: tuple[object, ...] = (*COMMANDS[case], *GAPS, "--num_workers", workers)
    if case == "scs all":
        flags = (*flags, "--sampling_batch_size", 1500)
    expected = outputs(gaps, tmp_path / "memory", *flags)
    with small_slices():
        actual = outputs(gaps, tmp_path / "files", *flags, "--work_dir", tmp_path / "work")
    assert actual == expected
    assert "leaving out" in expected[1]


@pytest.mark.parametrize("allowed", [(), GAPS[:1], GAPS[1:]])
def test_gaps_are_refused_alike(gaps: Job, tmp_path: Path, allowed: tuple[str, ...]) -> None:
    flags = (*gaps.flags(*SCS), *allowed)
    memory = in_process(*flags)
    with small_slices():
        files = in_process(*flags, "--work_dir", str(tmp_path / "work"))
    assert_refused(files, "'FLYT'")
    sentences = [re.split(", (?:the first|one of them) in", o.stderr)[0] for o in (memory, files)]
    assert sentences[0] == sentences[1]
    assert not gaps.save_path.exists()


def test_tables_of_one_column_each_and_of_the_metadata(tmp_path: Path) -> None:
    job = Job(POOL, tmp_path).write(2, 1)
    for file in job.scores.iterdir():
        file.unlink()
    for seed, name in enumerate(PUBLISHED[2:]):
        columns = {key: POOL.scores[key] for key in ("uid", name)}
        write_files(job.scores / name, columns, parts=1 + seed % 3, seed=seed)
    expected = outputs(job, tmp_path / "memory", *M_FLYT)
    with small_slices() as engine:
        actual = outputs(job, tmp_path / "files", *M_FLYT, "--work_dir", tmp_path / "work")
    assert actual == expected
    groups = {name.split("-")[0] for name in engine.names}
    assert groups == {
        "bucket",
        *map(str, range(11)),
    }  # one group for the metadata, and one for each of ten columns


def test_with_workers(whole: Job, tmp_path: Path) -> None:
    """The command sorts one bucket in a process of its own."""
    expected = outputs(whole, tmp_path / "memory", *ROUNDS)
    assert outputs(whole, tmp_path / "files", *ROUNDS, "--work_dir", tmp_path / "work") == expected
    work_files = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert work_files == ["column_0.npy", "done", "job.json", "partitioned", "uids.npy"]


# --------------------------------------------------------------- a folder that is used again


def test_another_sampling_of_the_same_folder(
    whole: Job, tmp_path: Path, files_in: Callable[[], dict[str, bytes]]
) -> None:
    def in_work() -> dict[str, bytes]:
        return {name: data for name, data in files_in().items() if name.startswith("work")}

    work = ("--work_dir", tmp_path / "work")
    with small_slices() as engine:
        outputs(whole, tmp_path / "first", *SCS, *work)
    assert engine.names
    before = in_work()
    for case in ("scs G 40", "hcs", "no_cap", "top_fraction", "scs"):
        expected = outputs(whole, tmp_path / "memory", *COMMANDS[case])
        with small_slices() as engine:
            assert outputs(whole, tmp_path / "files", *COMMANDS[case], *work) == expected
        assert engine.names == []
    assert in_work() == before, "a sampling changed the files of the folder"


def test_columns_in_another_order(whole: Job, tmp_path: Path) -> None:
    """A folder does not exchange the columns of the two stages."""
    for names in (("FLYT", "DFN-FT"), ("DFN-FT", "FLYT")):
        flags = (*TWO_STAGE, "--score_columns", *names)
        expected = outputs(whole, tmp_path / "memory", *flags)
        with small_slices():
            actual = outputs(whole, tmp_path / "files", *flags, "--work_dir", tmp_path / "work")
        assert actual == expected


def test_another_column_in_the_same_folder_is_refused(whole: Job, tmp_path: Path) -> None:
    work = ("--work_dir", tmp_path / "work")
    with small_slices():
        outputs(whole, tmp_path / "files", *SCS, *work)
        outcome = in_process(*whole.flags(*SCS, "--column", "DFN-FT", *work))
    assert_refused(outcome, f"--work_dir {tmp_path / 'work'}", "other files, images or columns")
    assert not whole.save_path.exists()


def test_a_second_run_leaves_the_files_of_the_first(whole: Job, tmp_path: Path) -> None:
    ending = "0123456789abcdef.datacomp_flyt.tmp"
    unfinished = whole.save_path.with_name(f".{whole.save_path.name}.{ending}")
    for locked in (whole.save_path, tmp_path):
        unfinished.write_bytes(b"half a subset")
        with lock_outputs(locked):
            outcome = in_process(*whole.flags(*SCS, "--work_dir", tmp_path))
        assert_refused(outcome, f"{locked} is being written by another run")
        assert unfinished.read_bytes() == b"half a subset"
    with small_slices():
        assert in_process(*whole.flags(*SCS, "--work_dir", tmp_path)).code == 0
    assert not unfinished.exists()
    whole.save_path.unlink()


@pytest.mark.parametrize("work", [False, True])
def test_scores_are_saved_in_the_folder_that_is_read(tmp_path: Path, work: bool) -> None:
    job = Job(POOL, tmp_path).write(2, 2)
    where = ("--save_scores", job.scores / "mine" / "mix.parquet")
    flags = (*where, "--work_dir", tmp_path / "work") if work else where
    with small_slices():
        assert in_process(*job.flags(*SCS, *flags)).code == 0
    assert [path.name for path in (job.scores / "mine").iterdir()] == ["mix.parquet"]


def test_a_work_dir_that_is_not_a_folder_is_refused(whole: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    for work_dir in (tmp_path / "file", tmp_path / "file" / "below", "memory://bucket/work"):
        outcome = in_process(*whole.flags(*SCS, "--work_dir", work_dir))
        assert_refused(outcome, f"--work_dir {work_dir}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
