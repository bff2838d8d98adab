"""Published scores as filters: one method for each, on the columns that the scorers make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.samplers import soft_cap_counts
from tests.baselines_plugin.job import Job, in_process
from tests.baselines_plugin.samplings import POOL, SCS, TOP, UIDS
from tests.conftest import write_files
from tests.oracles import scores as oracle

COLUMN_OF = {
    "neg_clip_loss": "negCLIPLoss",
    "norm_sim": "normsim_inf",
    "dfn": "DFN-FT",
    "linear_classifier": "CC2M-Classifier",
}
TWO_STAGE = ("--name", "neg_clip_loss_norm_sim", "--sampling", "top_fraction")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(POOL, tmp_path).write(parts=2, seed=3)


@pytest.mark.parametrize("name", COLUMN_OF)
@pytest.mark.parametrize("sampling", [SCS, TOP])
def test_a_filter_is_its_column(job: Job, name: str, sampling: tuple[object, ...]) -> None:
    job.select("--name", name, *sampling)
    bytes_of_name = job.save_path.read_bytes()
    job.select("--name", sampling[1], "--column", COLUMN_OF[name], *sampling[2:])
    assert job.save_path.read_bytes() == bytes_of_name
    job.select("--name", name, "--column", "DFN-Base", *sampling)
    assert job.save_path.read_bytes() != bytes_of_name


@pytest.mark.parametrize("name", ["vas", "norm_sim_d"])
def test_columns_that_are_not_published(job: Job, name: str) -> None:
    column = {"vas": "vas", "norm_sim_d": "normsim_d"}[name]
    flags = job.flags("--name", name, *TOP)
    code, _, stderr = in_process(*flags)
    assert (code, f"no column {column!r}" in stderr) == (2, True)
    scores = np.arange(120, dtype=np.float32)[::-1]
    write_files(job.scores / "more", {"uid": POOL.uids, column: scores}, 1, None)
    job.select("--name", name, *TOP)
    assert job.subset_is(np.arange(120) < 36)


def test_hype_is_the_plain_sum(job: Job) -> None:
    job.select("--name", "hype", *SCS)
    columns = [column for column in POOL.scores if column.startswith("hype_")]
    assert len(columns) == 3
    total = sum(POOL.scores[column].astype(np.float64) for column in columns)
    assert job.subset_is(soft_cap_counts(total, UIDS, 900, 0.4, 0))


@pytest.mark.parametrize(("first", "second"), [(None, 0.2), (0.5, 0.33), (0.25, 0.25)])
def test_two_stages_count_from_the_whole_pool(job: Job, first: float | None, second: float) -> None:
    flags = () if first is None else ("--first_fraction", first)
    job.select(*TWO_STAGE, "--fraction", second, *flags)
    scores = (POOL.scores["negCLIPLoss"], POOL.scores["normsim_inf"])
    expected = oracle.two_stage(*scores, first or 0.3, second, job.pairs)
    assert np.count_nonzero(expected) == int(second * 120)
    assert job.subset_is(expected)


def test_examples_that_the_first_stage_drops_are_never_drawn(job: Job) -> None:
    job.select("--name", "neg_clip_loss_norm_sim", *SCS)
    first = POOL.scores["negCLIPLoss"]
    kept = np.argsort(-first)[:36]
    counts = np.zeros(120, np.int32)
    counts[kept] = soft_cap_counts(POOL.scores["normsim_inf"][kept], UIDS[kept], 900, 0.4, 0)
    assert job.subset_is(counts)


def test_two_stages_of_other_columns(job: Job) -> None:
    flags = ("--score_columns", "DFN-FT", "vit-b-32", "--fraction", 0.1)
    job.select(*TWO_STAGE, *flags)
    scores = (POOL.scores["DFN-FT"], POOL.scores["vit-b-32"])
    assert job.subset_is(oracle.two_stage(*scores, 0.3, 0.1, job.pairs))


def test_two_stages_of_examples_with_both_scores(tmp_path: Path) -> None:
    scores = {name: values.copy() for name, values in POOL.scores.items() if name != "uid"}
    gaps = np.argsort(-scores["negCLIPLoss"])[[3, 5, 20, 21]]  # some of the best by the first score
    scores["negCLIPLoss"][gaps[:2]] = np.nan
    scores["normsim_inf"][gaps[2:]] = np.nan
    job = Job(POOL._replace(scores={"uid": POOL.uids, **scores}), tmp_path).write(2, 3)
    job.select(*TWO_STAGE, "--fraction", 0.2, "--drop_nonfinite")
    both = np.isin(np.arange(120), gaps, invert=True)
    pairs = [pair for pair, kept in zip(job.pairs, both, strict=True) if kept]
    counts = np.zeros(120, np.int64)
    stages = (scores["negCLIPLoss"][both], scores["normsim_inf"][both])
    counts[both] = oracle.two_stage(*stages, 0.3, 0.2, pairs)
    assert job.subset_is(counts)


def test_a_fraction_above_that_of_the_first_stage_is_refused(job: Job) -> None:
    code, _, stderr = in_process(*job.flags(*TWO_STAGE, "--fraction", 0.5))
    assert code == 2
    assert "is 60 and 36 can be kept: lower --fraction or raise --first_fraction" in stderr
    assert not job.save_path.exists()
    code, _, stderr = in_process(*job.flags(*TWO_STAGE, *TOP[2:], "--score_columns", "FLYT"))
    assert (code, "wants two" in stderr) == (2, True)
