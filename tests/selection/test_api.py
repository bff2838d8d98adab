"""The Python API of selection: the same bytes as the command, several methods of one pool."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import datacomp_flyt as flyt
from baselines_plugin.flags import flag_names
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.samplers import soft_cap_counts
from datacomp_flyt.scorers import save_glu_head
from datacomp_flyt.scorers.base.registry import built_in_scorers
from datacomp_flyt.selection.methods import self_filtering
from datacomp_flyt.selection.registry import describe_methods, method_names
from tests.baselines_plugin.finished_run import COUNTS, run_dir
from tests.baselines_plugin.job import Job
from tests.baselines_plugin.large_pool import small_slices
from tests.conftest import make_pool, refusal
from tests.oracles.selection import parse_uid, uid_array
from tests.scorers.base.made import made_embeddings, made_head, write_npz

POOL = make_pool()
UIDS = np.sort(uid_array(map(parse_uid, POOL.uids)))
CLIP = "clip_l14_similarity_score"
SCS = {"num_samples": 900, "repetition_penalty": 0.4}
ALPHA = ("--repetition_penalty", 0.4)
ACCURACIES = {"DFN-FT": 0.5, "FLYT": 0.25, "vit-b-32": 0.4}
METHODS_IN_PYTHON = (
    "m_flyt", "e_flyt", "plain_sum", "standardized_sum", "in_weighted_sum", "hype",
    "neg_clip_loss_norm_sim",
)  # fmt: skip
SAMPLERS_IN_PYTHON = (
    "soft_cap_sample", "hard_cap_sample", "sample_with_replacement", "top_fraction"
)  # fmt: skip
TWO = ("DFN-FT", "FLYT")
METHODS = {
    "m_flyt": (lambda pool: flyt.m_flyt(pool, scoring_model="paper"), {"scoring_model": "paper"}),
    "plain_sum": (lambda pool: flyt.plain_sum(pool, score_columns=TWO), {"score_columns": TWO}),
    "standardized_sum": (flyt.standardized_sum, {}),
    "in_weighted_sum": (
        lambda pool: flyt.in_weighted_sum(pool, weight_ratio=3.0, imagenet_accuracies=ACCURACIES),
        {"weight_ratio": 3.0, "imagenet_accuracies": ACCURACIES},
    ),
    "hype": (flyt.hype, {}),
    "neg_clip_loss_norm_sim": (
        lambda pool: flyt.neg_clip_loss_norm_sim(pool, first_fraction=0.5),
        {"first_fraction": 0.5},
    ),
    "dfn": (lambda pool: flyt.column(pool, "DFN-FT"), {}),
    "scs": (lambda pool: flyt.column(pool, CLIP), {"column": CLIP}),
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(POOL, tmp_path).write(parts=2, seed=3)


def opened(job: Job, **options: object) -> Columns:
    return flyt.open_pool(job.metadata, scores=job.scores, num_workers=1, **options)


def selected(job: Job, method: str, **options: object) -> flyt.Subset:
    paths = {"metadata_dir": job.metadata, "scores": job.scores, "save_path": job.save_path}
    return flyt.select(method, **paths, num_workers=1, **options)


# ---------------------------------------------------------------------------- same bytes


def test_all_methods_of_one_pool_give_the_bytes_of_the_command(job: Job) -> None:
    """One pool serves all methods in turn, though the command reads a pool once."""
    pool = opened(job)
    for name, (method, options) in METHODS.items():
        subset = flyt.soft_cap_sample(method(pool), **SCS, seed=3)
        subset.save(job.folder / "api.npy")
        again = selected(job, name, **SCS, seed=3, **options)
        assert again.counts.tolist() == subset.counts.tolist()
        assert job.save_path.read_bytes() == (job.folder / "api.npy").read_bytes()


@pytest.mark.parametrize(
    ("sample", "sampling", "options"),
    [
        (flyt.soft_cap_sample, "scs", {**SCS, "seed": 2}),
        (flyt.hard_cap_sample, "hcs", {"num_samples": 300, "frequency_limit": 5, "seed": 2}),
        (flyt.sample_with_replacement, "no_cap", {"num_samples": 300, "seed": 2}),
        (flyt.top_fraction, "top_fraction", {"fraction": 0.3}),
        (flyt.top_fraction, "top_fraction", {"fraction": 0.3, "keep_ties": True}),
    ],
)
def test_samplers(job: Job, sample: object, sampling: str, options: dict[str, object]) -> None:
    subset = sample(flyt.column(opened(job), "DFN-FT"), **options)  # type: ignore[operator]
    subset.save(job.folder / "api.npy")
    selected(job, "dfn", sampling=sampling, **options)
    assert job.save_path.read_bytes() == (job.folder / "api.npy").read_bytes()
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    if options.get("keep_ties"):
        flags.remove(True)
    job.select("--name", "dfn", "--sampling", sampling, *flags)
    assert job.save_path.read_bytes() == (job.folder / "api.npy").read_bytes()


def test_e_flyt_and_a_finished_run(job: Job) -> None:
    write_npz(job.metadata, POOL.uids, made_embeddings(len(POOL.uids)))
    model = job.folder / "head.safetensors"
    save_glu_head(made_head(8, 12), model)
    pool = flyt.open_pool(job.metadata, num_workers=1)
    flyt.top_fraction(flyt.e_flyt(pool, scoring_model=model), fraction=0.2).save(
        job.folder / "api.npy"
    )
    e_flyt = ("--name", "e_flyt", "--scoring_model", model, "--sampling", "top_fraction")
    job.select(*e_flyt, "--fraction", 0.2, table=False)
    assert job.save_path.read_bytes() == (job.folder / "api.npy").read_bytes()
    run = run_dir(job.folder / "run")
    selected(job, "self_filtering", run_dir=run)
    assert job.subset_is(COUNTS)


def test_a_pool_in_files(job: Job) -> None:
    wanted = flyt.m_flyt(opened(job), scoring_model="paper")
    with small_slices():
        pool = opened(job, work_dir=job.folder / "work")
        assert "counted when columns are first read" in refusal(len, pool)
        scores = flyt.m_flyt(pool, scoring_model="paper")
        assert scores.values.tobytes() == wanted.values.tobytes()
        assert len(pool) == len(UIDS)
        assert flyt.m_flyt(pool, scoring_model="paper").uids.tobytes() == wanted.uids.tobytes()
        run = run_dir(job.folder / "run")
        assert "leave --work_dir out" in refusal(self_filtering, pool, run_dir=run)
        with lock_outputs(job.folder / "work"):
            message = refusal(flyt.column, opened(job, work_dir=job.folder / "work"), "FLYT")
        assert "is being written by another run" in message


# ------------------------------------------------------------------------------- results


def test_a_pool_says_what_it_has(job: Job) -> None:
    pool = opened(job)
    assert len(pool) == len(UIDS)
    assert {CLIP, "DFN-FT", "FLYT"} <= set(pool.columns)
    assert not {"text", "original_width"} & set(pool.columns)
    assert flyt.column(pool, "original_width").values.min() >= 16
    assert f"{len(UIDS)} rows in 2 files of {job.metadata}" in repr(pool)


def test_scores(job: Job, tmp_path: Path) -> None:
    scores = flyt.m_flyt(opened(job), scoring_model="paper")
    assert len(scores) == len(UIDS)
    assert scores.uids.tolist() == UIDS.tolist()
    assert np.isfinite(scores.values).all()
    assert repr(scores) == "<scores 'm_flyt' of 120 examples>"
    scores.save(tmp_path / "scores.parquet")
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["uid", "m_flyt"]
    assert table["m_flyt"].to_pylist() == scores.values.tolist()
    scores.save_model(tmp_path / "model.safetensors")
    again = flyt.m_flyt(opened(job), scoring_model=tmp_path / "model.safetensors")
    assert again.values.tolist() == scores.values.tolist()
    assert scores.model is not None
    assert scores.model.means is not None
    plain = flyt.column(opened(job), CLIP)
    assert "without a mixing model" in refusal(plain.save_model, tmp_path / "none.safetensors")
    assert "is a cloud path" in refusal(plain.save, "memory://bucket/scores.parquet")


def test_scores_of_arrays_that_a_user_has() -> None:
    values = np.random.default_rng(0).normal(size=len(UIDS))
    scores = flyt.Scores(UIDS, values)
    subset = flyt.soft_cap_sample(scores, **SCS, seed=1)
    assert subset.counts.tolist() == soft_cap_counts(values, UIDS, 900, 0.4, 1).tolist()
    assert len(flyt.top_fraction(scores, fraction=0.25)) == 30


def test_a_subset(job: Job, tmp_path: Path) -> None:
    subset = flyt.soft_cap_sample(flyt.column(opened(job), "FLYT"), **SCS)
    assert len(subset) == subset.counts.sum() == 900
    num_drawn = int(np.count_nonzero(subset.counts))
    assert repr(subset) == f"<subset of 900 draws of {num_drawn} examples>"
    assert subset.summary().startswith(f"900 draws of {num_drawn} examples, each at most ")
    assert f"<li>900 draws of {num_drawn} examples" in subset._repr_html_()
    subset.save(tmp_path / "s.npy")
    again = flyt.Subset.read(tmp_path / "s.npy")
    assert len(again) == 900
    assert again.uids.tolist() == subset.uids[subset.counts > 0].tolist()
    assert again.counts.tolist() == subset.counts[subset.counts > 0].tolist()
    assert again.summary() == subset.summary()
    np.save(tmp_path / "no.npy", UIDS[::-1])
    assert "is no subset" in refusal(flyt.Subset.read, tmp_path / "no.npy")


def test_fractions_of_the_pool_or_of_what_can_be_selected(job: Job, tmp_path: Path) -> None:
    np.save(tmp_path / "available.npy", UIDS[:90])
    scores = flyt.column(opened(job, available=tmp_path / "available.npy"), "FLYT")
    assert len(scores) == 90
    assert len(flyt.top_fraction(scores, fraction=0.5)) == 45
    assert len(flyt.top_fraction(scores, fraction=0.5, fraction_of="pool")) == 60
    message = refusal(flyt.top_fraction, scores, fraction=0.9, fraction_of="pool")
    assert "is 108 and 90 can be kept" in message


# ------------------------------------------------------------------------------ refusals


def test_refusals(job: Job) -> None:
    pool = opened(job)
    scores = flyt.column(pool, "FLYT")
    cases = [
        (refusal(flyt.column, pool, "none"), "no column 'none'"),
        (refusal(flyt.soft_cap_sample, scores, num_samples=5), "--repetition_penalty"),
        (
            refusal(flyt.soft_cap_sample, scores, scale="tiny"),
            "--scale is 'tiny', wanted one of small",
        ),
        (refusal(flyt.sample_with_replacement, scores), "--num_samples"),
        (refusal(flyt.top_fraction, scores, fraction=math.nan), "--fraction is nan"),
        (refusal(flyt.top_fraction, scores, fraction=0.1, fraction_of="all"), "--fraction_of is"),
        (refusal(flyt.m_flyt, pool, scoring_model="no.pt"), "no.pt is not a file"),
        (refusal(flyt.neg_clip_loss_norm_sim, pool, score_columns=["FLYT"]), "wants two"),
        (refusal(opened, job, engine="ray"), "--engine says where --work_dir is sorted"),
        (refusal(opened, job, work_dir="s3://bucket/work"), "is a cloud path"),
        (refusal(flyt.open_pool, job.metadata, num_workers=0), "--num_workers is 0"),
        (refusal(selected, job, "none"), "there is no method 'none': wanted one of m_flyt"),
        (refusal(selected, job, "dfn", sampling="none", **SCS), "no sampling method 'none'"),
        (refusal(selected, job, "scs", **SCS), "--name scs wants --column COLUMN"),
    ]
    for message, words in cases:
        assert words in message
    assert not job.save_path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"scores_dir": "s"},
            "no argument scores_dir for dfn with sampling scs: did you mean scores?",
        ),
        (
            {"penalty": 1},
            "no argument penalty for dfn with sampling scs: did you mean repetition_penalty?",
        ),
        ({"num_worker": 0}, "did you mean num_workers?"),
        ({"fraction": 1}, "no argument fraction for dfn with sampling scs: leave it out"),
        ({"q": 1}, "leave it out; the options are column, num_samples, repetition_penalty,"),
    ],
)
def test_unknown_arguments_of_select(job: Job, options: dict[str, object], words: str) -> None:
    message = refusal(selected, job, "dfn", **SCS, **options)
    assert words in message
    assert "--" not in message
    assert not job.save_path.exists()


def test_unknown_arguments_of_a_sampling_method() -> None:
    scores = flyt.Scores(UIDS, np.zeros(len(UIDS)))

    def one_each(values, uids, *, pool_size, seed, num_workers, least=0):  # type: ignore[no-untyped-def]
        return np.ones(len(values), np.int32)

    sampling = flyt.Sampling("one_each", "each once", one_each, {"most": {"type": int}})
    assert len(sampling.sample(scores, least=1)) == len(UIDS)
    message = refusal(sampling.sample, scores, leat=1)
    assert message == "sampling method one_each has no argument leat: did you mean least?"
    message = refusal(sampling.sample, scores, seeds_of=1)
    assert message.endswith("no argument seeds_of: leave it out; the options are least, most")


def test_arguments_that_e_flyt_does_not_read(job: Job) -> None:
    save_glu_head(made_head(8, 12), job.folder / "head.safetensors")
    message = refusal(selected, job, "e_flyt", scoring_model=job.folder / "head.safetensors", **SCS)
    assert message.startswith("select has no argument scores for e_flyt, which reads embeddings")


def test_every_scorer_is_a_method() -> None:
    """But no name of DataComp's own `baselines.py` is taken from it."""
    methods, scorers = method_names(), built_in_scorers()
    assert {one.name for one in scorers if one.name not in methods} == {"clip_score"}
    assert not {"no_filter", "basic_filter", "text_based", "image_based"} & set(methods)
    assert "column normsim_inf" in describe_methods()["norm_sim"]


def test_arguments_are_named_like_flags() -> None:
    """All but `scores`, which is --scores_dir."""
    for name in ("select", *METHODS_IN_PYTHON, *SAMPLERS_IN_PYTHON, "open_pool"):
        parameters = inspect.signature(getattr(flyt, name)).parameters.values()
        keywords = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
        assert keywords <= flag_names() | {"scores"}, name


def test_former_names(job: Job) -> None:
    """`flyt`, `sum` and `--score` are in no help text, and work."""
    job.select("--name", "plain_sum", "--score_columns", *TWO, *("--num_samples", 50), *ALPHA)
    wanted = job.save_path.read_bytes()
    job.select("--name", "sum", "--score_columns", *TWO, "--num_samples", 50, *ALPHA)
    assert job.save_path.read_bytes() == wanted
    job.select("--name", "scs", "--column", "FLYT", "--num_samples", 50, *ALPHA)
    wanted = job.save_path.read_bytes()
    job.select("--name", "scs", "--score", "FLYT", "--num_samples", 50, *ALPHA)
    assert job.save_path.read_bytes() == wanted
    write_npz(job.metadata, POOL.uids, made_embeddings(len(POOL.uids)))
    save_glu_head(made_head(8, 12), job.folder / "head.safetensors")
    model = ("--scoring_model", job.folder / "head.safetensors", "--num_samples", 50, *ALPHA)
    scores = job.folder / "e.parquet"
    job.select("--name", "e_flyt", *model, table=False)
    wanted = job.save_path.read_bytes()
    job.select("--name", "flyt", *model, "--save_scores", scores, table=False)
    assert job.save_path.read_bytes() == wanted
    assert pq.read_table(scores).column_names == ["uid", "flyt"]
