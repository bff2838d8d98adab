"""Subsets from flags, against the oracles' mixing and the samplers called directly."""

from __future__ import annotations

import argparse
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from baselines_plugin import add_arguments, method_names, run_if_ours
from datacomp_flyt.samplers import hard_cap_counts, no_cap_counts, soft_cap_counts
from datacomp_flyt.selection import registry
from tests.baselines_plugin.job import Job, as_command, in_process
from tests.baselines_plugin.samplings import HCS, NO_CAP, PAPER, POOL, SCS, TOP, UIDS
from tests.conftest import PUBLISHED, hex_uids, make_pool, take, write_files, write_parquet
from tests.oracles import mixing, selection
from tests.oracles.selection import uid_array

CLIP = "clip_l14_similarity_score"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(POOL, tmp_path).write(parts=2, seed=3)


def published(scores: dict[str, Any] = POOL.scores) -> dict[str, list[float]]:
    return {name: scores[name].tolist() for name in PUBLISHED if name in scores}


PAPER_SCORES = mixing.m_flyt(published(), mixing.PAPER_WEIGHTS)
RAW_CLIP = POOL.metadata[CLIP].tolist()


def counted(flags: tuple[object, ...], scores: list[float], seed: int = 0) -> np.ndarray:
    """Return the counts of the samplers for the given scores."""
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    sampling, draws = options["--sampling"], options.get("--num_samples")
    array = np.array(scores)
    if sampling == "scs":
        size = options.get("--sampling_batch_size", 1)
        return soft_cap_counts(array, UIDS, draws, options["--repetition_penalty"], seed, size)
    if sampling == "hcs":
        return hard_cap_counts(array, UIDS, draws, options["--frequency_limit"], seed)
    if sampling == "no_cap":
        return no_cap_counts(array, UIDS, draws, seed)
    pairs = UIDS.tolist()
    return np.array(selection.top_fraction(scores, pairs, options["--fraction"]))


# ------------------------------------------------------------------ methods and samplings


@pytest.mark.parametrize("sampling", [SCS, (*SCS, "--sampling_batch_size", 7), HCS, NO_CAP, TOP])
@pytest.mark.parametrize("seed", [0, 5])
def test_m_flyt_of_the_paper_with_every_sampling(
    job: Job, sampling: tuple[object, ...], seed: int
) -> None:
    job.select(*PAPER, *sampling, "--seed", seed)
    counts = counted(sampling, PAPER_SCORES, seed)
    assert job.subset_is(counts)
    assert 1 < np.count_nonzero(counts) < len(counts), "all counts are equal, so nothing is tested"
    if sampling[1] != "top_fraction":
        assert not job.subset_is(counted(sampling, PAPER_SCORES, seed + 1))


def test_soft_cap_sampling_is_the_default(job: Job) -> None:
    job.select(*PAPER, *SCS[2:])
    assert job.subset_is(counted(SCS, PAPER_SCORES))


THREE = ("DFN-FT", "FLYT", "vit-b-32")
THREE_COLUMNS = {name: published()[name] for name in THREE}
ACCURACIES = {"DFN-FT": 0.5, "FLYT": 0.25, "vit-b-32": 0.4}
AS_FLAGS = [f"{name}={accuracy}" for name, accuracy in ACCURACIES.items()]


@pytest.mark.parametrize(
    ("flags", "scores"),
    [
        (["plain_sum"], mixing.plain_sum(published())),
        (["plain_sum", "--score_columns", *THREE], mixing.plain_sum(THREE_COLUMNS)),
        (["standardized_sum"], mixing.standardized_sum(published())),
        (["standardized_sum", "--score_columns", *THREE], mixing.standardized_sum(THREE_COLUMNS)),
        (
            ["in_weighted_sum"],
            mixing.in_weighted_sum(published(), mixing.PAPER_IMAGENET_ACCURACIES, 8.0),
        ),
        (
            ["in_weighted_sum", "--weight_ratio", 2],
            mixing.in_weighted_sum(published(), mixing.PAPER_IMAGENET_ACCURACIES, 2.0),
        ),
        (
            ["in_weighted_sum", "--imagenet_accuracies", *AS_FLAGS],
            mixing.in_weighted_sum(THREE_COLUMNS, ACCURACIES, 8.0),
        ),
    ],
)
@pytest.mark.parametrize("sampling", [SCS, TOP])
def test_every_sum(
    job: Job, flags: list[object], scores: list[float], sampling: tuple[object, ...]
) -> None:
    job.select("--name", *flags, *sampling)
    assert job.subset_is(counted(sampling, scores))


@pytest.mark.parametrize("sampling", [SCS, HCS, NO_CAP, TOP])
@pytest.mark.parametrize("with_sampling", [False, True])
def test_one_column_of_a_bare_pool(
    job: Job, sampling: tuple[object, ...], with_sampling: bool
) -> None:
    flags = sampling if with_sampling else sampling[2:]
    job.select("--name", sampling[1], "--column", CLIP, *flags, table=False)
    assert job.subset_is(counted(sampling, RAW_CLIP))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.57, 1.0])
@pytest.mark.parametrize("keep_ties", [False, True])
def test_ties_are_broken_by_uid_or_all_kept(
    tmp_path: Path, fraction: float, keep_ties: bool
) -> None:
    values = np.random.default_rng(4).integers(0, 6, len(UIDS)).astype(np.float32)
    job = Job(POOL._replace(scores={"uid": POOL.uids, "s": values}), tmp_path).write(3, seed=9)
    flags = ["--keep_ties"] if keep_ties else []
    job.select("--name", "top_fraction", "--column", "s", "--fraction", fraction, *flags)
    by_uid = selection.top_fraction(values.tolist(), UIDS.tolist(), fraction)
    all_ties = selection.top_fraction_keep_ties(values.tolist(), fraction)
    assert job.subset_is(all_ties if keep_ties else by_uid)
    assert fraction == 1 or by_uid != all_ties


# ------------------------------------------------------------------------ column lookup


def test_clip_scores_of_the_metadata_replace_missing_published_ones(tmp_path: Path) -> None:
    scores = {name: POOL.scores[name] for name in ("uid", *PUBLISHED[2:])}
    job = Job(POOL._replace(scores=scores), tmp_path).write()
    output = job.select(*PAPER, *SCS)
    columns = {
        "vit-b-32": POOL.metadata["clip_b32_similarity_score"].tolist(),
        "vit-l-14": RAW_CLIP,
        **published(scores),
    }
    assert job.subset_is(counted(SCS, mixing.m_flyt(columns, mixing.PAPER_WEIGHTS)))
    assert not job.subset_is(counted(SCS, PAPER_SCORES))
    assert "without" not in output


@pytest.mark.parametrize("name", ["vit-b-32", "vit-l-14"])
def test_a_published_name_on_a_bare_pool(job: Job, name: str) -> None:
    column = {"vit-b-32": "clip_b32_similarity_score", "vit-l-14": CLIP}[name]
    job.select("--name", "scs", "--column", name, *SCS, table=False)
    assert job.subset_is(counted(SCS, POOL.metadata[column].tolist()))


def test_a_score_table_has_priority_over_the_metadata(tmp_path: Path) -> None:
    other = np.random.default_rng(8).normal(0, 2, len(UIDS))
    job = Job(POOL._replace(scores={"uid": POOL.uids, CLIP: other}), tmp_path).write()
    job.select("--name", "scs", "--column", CLIP, *SCS)
    assert job.subset_is(counted(SCS, other.tolist()))


def test_columns_in_files_of_their_own_in_sub_folders(tmp_path: Path) -> None:
    job = Job(POOL, tmp_path).write()
    for file in job.scores.iterdir():
        file.unlink()
    for seed, name in enumerate(PUBLISHED):
        columns = {key: POOL.scores[key] for key in ("uid", name)}
        write_files(job.scores / name, columns, parts=1 + seed % 3, seed=seed)
    job.select(*PAPER, *SCS)
    assert job.subset_is(counted(SCS, PAPER_SCORES))


def without(tmp_path: Path, *names: str) -> Job:
    scores = {name: values for name, values in POOL.scores.items() if name not in names}
    return Job(POOL._replace(scores=scores), tmp_path).write()


@pytest.mark.parametrize(
    ("column", "scorer"),
    [("DFN-FT", "dfn"), ("negCLIPLoss", "neg_clip_loss"), ("hype_text_specificity", "hype")],
)
def test_a_missing_column_is_named_with_its_scorer(
    tmp_path: Path, column: str, scorer: str
) -> None:
    job = without(tmp_path, column)
    code, _, stderr = in_process(*job.flags(*PAPER, *SCS))
    assert code == 2
    assert f"no column {column!r} (made by scorer {scorer})" in stderr
    assert "--allow_missing_scores" in stderr
    assert "normsim_inf" in stderr, "the message does not list the columns of the pool"
    assert not job.save_path.exists()


def test_missing_columns_are_left_out_if_allowed(tmp_path: Path) -> None:
    job = without(tmp_path, "DFN-FT", "FLYT")
    output = job.select(*PAPER, *SCS, "--allow_missing_scores")
    weights = {k: v for k, v in mixing.PAPER_WEIGHTS.items() if k not in ("DFN-FT", "FLYT")}
    assert job.subset_is(counted(SCS, mixing.m_flyt(published(), weights)))
    assert "without DFN-FT, FLYT" in output


def test_a_selection_without_any_column_is_refused(tmp_path: Path) -> None:
    job = Job(POOL, tmp_path).write()
    flags = ("--name", "plain_sum", "--score_columns", "x", "y", "--allow_missing_scores", *SCS)
    code, _, stderr = in_process(*job.flags(*flags))
    assert code == 2
    assert "no column 'x', 'y'" in stderr


# --------------------------------------------------------- examples without usable scores


def job_with_bad_scores(tmp_path: Path, rows: list[int], value: float) -> tuple[Job, np.ndarray]:
    """Write a job with bad scores in some rows of a column; return it with a mask of the others."""
    values = POOL.scores["FLYT"].copy()
    values[rows] = value
    job = Job(POOL._replace(scores={**POOL.scores, "FLYT": values}), tmp_path).write(3, seed=1)
    return job, np.isin(np.arange(len(UIDS)), rows, invert=True)


def assert_only(job: Job, kept: np.ndarray, output: str) -> None:
    """Assert that the subset and its statistics are those of the kept examples only."""
    means: dict[str, tuple[float, float]] = {}
    for name, values in published().items():
        finite = [v for v, k in zip(values, kept, strict=True) if k]
        mean = math.fsum(finite) / len(finite)
        means[name] = mean, math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / len(finite))
    scores = np.array(
        [
            math.fsum(
                weight * (published()[name][row] - means[name][0]) / means[name][1]
                for name, weight in mixing.PAPER_WEIGHTS.items()
            )
            for row in np.flatnonzero(kept)
        ]
    )
    counts = np.zeros(len(UIDS), np.int64)
    counts[kept] = soft_cap_counts(scores, UIDS[kept], 900, 0.4, 0)
    assert job.subset_is(counts)
    assert f"leaving out {np.count_nonzero(~kept)} examples" in output


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_drop_nonfinite_leaves_those_examples_out(tmp_path: Path, value: float) -> None:
    job, kept = job_with_bad_scores(tmp_path, [2, 50, 51], value)
    assert_only(job, kept, job.select(*PAPER, *SCS, "--drop_nonfinite"))


def test_allow_partial_scores_leaves_examples_out(tmp_path: Path) -> None:
    job = without(tmp_path, "FLYT")
    rows = [row for row in range(len(UIDS)) if row not in (2, 50, 51)]
    part = take({"uid": POOL.uids, "FLYT": POOL.scores["FLYT"]}, rows)
    write_files(job.scores / "flyt", part)
    kept = np.isin(np.arange(len(UIDS)), rows)
    assert_only(job, kept, job.select(*PAPER, *SCS, "--allow_partial_scores"))


def test_scores_of_examples_outside_the_pool_change_nothing(tmp_path: Path) -> None:
    job = Job(POOL, tmp_path).write()
    others = {name: np.full(30, 1e6, np.float32) for name in PUBLISHED}
    write_parquet(job.scores / "others.parquet", {"uid": hex_uids(30, "others"), **others})
    job.select(*PAPER, *SCS)
    assert job.subset_is(counted(SCS, PAPER_SCORES))


# ------------------------------------------------------------------------- other outputs


@pytest.mark.parametrize("row_group", [50, 1 << 20])
def test_saved_scores_give_the_same_subset(
    job: Job, monkeypatch: pytest.MonkeyPatch, row_group: int
) -> None:
    monkeypatch.setattr("datacomp_flyt.selection.scores._ROW_GROUP", row_group)
    saved = job.folder / "final" / "scores.parquet"
    job.select(*PAPER, *SCS, "--save_scores", saved)
    first = job.save_path.read_bytes()
    table = pq.read_table(saved)
    assert table.column_names == ["uid", "m_flyt"]
    actual = dict(zip(table["uid"].to_pylist(), table["m_flyt"].to_pylist(), strict=True))
    assert list(actual) == sorted(POOL.uids)
    expected = dict(zip(POOL.uids, PAPER_SCORES, strict=True))
    assert actual == pytest.approx(expected, rel=1e-12, abs=1e-12)

    job.save_path.unlink()
    job.select(
        "--name", "scs", "--column", "m_flyt", "--scores_dir", saved.parent, *SCS, table=False
    )
    assert job.save_path.read_bytes() == first


def test_saved_scores_of_one_column_are_that_column(job: Job) -> None:
    saved = job.folder / "scores.parquet"
    job.select("--name", "top_fraction", "--column", "DFN-FT", *TOP, "--save_scores", saved)
    table = pq.read_table(saved)
    actual = dict(zip(table["uid"].to_pylist(), table["top_fraction"].to_numpy(), strict=True))
    assert actual == dict(zip(POOL.uids, POOL.scores["DFN-FT"], strict=True))
    assert table["top_fraction"].type == "float"


@pytest.mark.parametrize(
    "method",
    [PAPER, ("--name", "standardized_sum"), ("--name", "in_weighted_sum"), ("--name", "plain_sum")],
)
def test_a_saved_model_has_the_statistics_of_its_pool(
    job: Job, tmp_path: Path, method: tuple[str, ...]
) -> None:
    model = tmp_path / "models" / "m.safetensors"
    job.select(*method, *SCS, "--save_scoring_model", model)
    first = job.save_path.read_bytes()
    reuse = ("--name", "m_flyt", "--scoring_model", model)
    job.select(*reuse, *SCS)
    assert job.save_path.read_bytes() == first

    rows = list(range(0, len(UIDS), 4))
    small = make_pool()._replace(
        uids=[POOL.uids[row] for row in rows],
        metadata=take(POOL.metadata, rows),
        scores=take(POOL.scores, rows),
    )
    other = Job(small, tmp_path / "small").write()
    saved = tmp_path / "small_scores.parquet"
    other.select(*reuse, *SCS, "--save_scores", saved)
    weights = load_file(model)
    columns = np.array([POOL.scores[name].astype(np.float64) for name in PUBLISHED])
    if "means" in weights:
        assert weights["means"] == pytest.approx(columns.mean(1), rel=1e-6)
        columns = (columns - columns.mean(1, keepdims=True)) / columns.std(1, keepdims=True)
    expected = dict(zip(POOL.uids, weights["weights"] @ columns, strict=True))
    table = pq.read_table(saved)
    actual = dict(zip(table["uid"].to_pylist(), table["m_flyt"].to_pylist(), strict=True))
    assert set(actual) == set(small.uids)
    assert actual == pytest.approx({uid: expected[uid] for uid in actual}, rel=1e-6, abs=1e-6)


def test_saving_again_replaces_the_old_files(job: Job) -> None:
    saved = job.folder / "scores.parquet"
    for path in (job.save_path, saved):
        path.write_bytes(b"old" * 100_000)
    job.select(*PAPER, *SCS, "--save_scores", saved)
    assert job.subset_is(counted(SCS, PAPER_SCORES))
    assert pq.read_metadata(saved).num_rows == len(UIDS)


# ---------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(("scale", "alpha"), [("small", 0.5), ("medium", 0.15), ("large", 0.15)])
def test_a_scale_on_a_tiny_pool_samples_one_by_one(job: Job, scale: str, alpha: float) -> None:
    output = job.select(*PAPER, "--scale", scale, "--num_samples", 700)
    sampling = ("--sampling", "scs", "--num_samples", 700, "--repetition_penalty", alpha)
    assert job.subset_is(counted(sampling, PAPER_SCORES))
    assert f"--scale {scale}" in output
    assert f"the pool lists {len(UIDS)}" in output
    assert "G 1\n" in output


def test_the_small_scale_on_a_pool_larger_than_its_round(tmp_path: Path) -> None:
    num_rows = 10_001
    uids = [hashlib.md5(b"%d" % row).hexdigest() for row in range(num_rows)]
    values = np.random.default_rng(0).normal(0, 1, num_rows)
    pool = POOL._replace(uids=uids, metadata={"uid": uids, "s": values}, scores={"uid": uids})
    job = Job(pool, tmp_path).write()
    flags = ("--name", "scs", "--column", "s", "--scale", "small", "--num_samples", 20_500)
    assert "G 10,000" in job.select(*flags, table=False)
    counts = soft_cap_counts(values, uid_array(job.pairs), 20_500, 0.5, 0, 10_000)
    assert job.subset_is(counts)
    assert counts.max() <= 3


def test_flags_have_priority_over_the_scale(job: Job) -> None:
    flags = ("--num_samples", 300, "--repetition_penalty", 1.5, "--sampling_batch_size", 9)
    output = job.select(*PAPER, "--scale", "small", *flags)
    assert job.subset_is(counted(("--sampling", "scs", *flags), PAPER_SCORES))
    assert "300 draws, alpha 1.5, G 9" in output


# ----------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize(
    "flags",
    [
        (*PAPER, *SCS),
        (*PAPER, *SCS, "--sampling_batch_size", 11),
        (*PAPER, *HCS),
        ("--name", "plain_sum", *NO_CAP),
        ("--name", "in_weighted_sum", *TOP),
        ("--name", "scs", "--column", CLIP, *SCS),
    ],
)
def test_files_partitions_and_workers_change_no_byte(
    tmp_path: Path, flags: tuple[object, ...]
) -> None:
    subsets = set()
    for parts, workers, seed in [
        (1, 1, None),
        (1, 2, 3),
        (2, 1, 4),
        (2, 2, 5),
        (7, 1, 6),
        (7, 2, 7),
    ]:
        job = Job(POOL, tmp_path / f"{parts} {workers}").write(parts, seed)
        job.select(*flags, "--num_workers", workers)
        subsets.add(job.save_path.read_bytes())
    assert len(subsets) == 1


def test_a_cloud_pool_gives_the_bytes_of_a_local_one(job: Job, memory_folder: str) -> None:
    job.select(*PAPER, *SCS)
    write_files(f"{memory_folder}/metadata", POOL.metadata, 3, seed=1)
    write_files(f"{memory_folder}/scores", POOL.scores, 2, seed=2)
    cloud = job.folder / "cloud.npy"
    folders = (
        "--metadata_dir",
        f"{memory_folder}/metadata",
        "--scores_dir",
        f"{memory_folder}/scores",
    )
    flags = [*PAPER, *map(str, SCS), *folders, "--save_path", str(cloud)]
    assert in_process(*flags).code == 0
    assert cloud.read_bytes() == job.save_path.read_bytes()


def test_the_command_gives_the_same_bytes(job: Job) -> None:
    job.select(*PAPER, *SCS)
    inside = job.save_path.read_bytes()
    job.save_path.unlink()
    code, stdout, stderr = as_command(*job.flags(*PAPER, *SCS))
    assert (code, stderr) == (0, "")
    assert job.save_path.read_bytes() == inside
    assert "running: m_flyt" in stdout
    assert "120 examples in 2 files" in stdout
    assert f"saved {job.save_path}" in stdout
    assert "900 draws of" in stdout


# --------------------------------------------------------------------------- in a host


def host_parser() -> argparse.ArgumentParser:
    """Make a parser with our flags and those of DataComp's parser."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True, choices=["clip_score", *method_names()])
    parser.add_argument("--metadata_dir", required=True)
    parser.add_argument("--save_path", required=True)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--fraction", type=float)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--arch")
    parser.add_argument("--image_based_scale")
    add_arguments(parser)
    return parser


def test_inside_a_host_s_parser(job: Job) -> None:
    args = host_parser().parse_args(job.flags(*PAPER, *SCS))
    with pytest.raises(SystemExit) as ended:
        run_if_ours(args)
    assert ended.value.code == 0
    assert job.subset_is(counted(SCS, PAPER_SCORES))


def test_a_method_of_the_host_is_not_run(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    run_if_ours(host_parser().parse_args(job.flags("--name", "clip_score", "--arch", "l14")))
    assert not job.save_path.exists()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flag", "value"), [("--arch", "l14"), ("--threshold", "0.3"), ("--image_based_scale", "small")]
)
def test_flags_of_the_host_s_methods_are_refused(
    job: Job, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = host_parser().parse_args(job.flags(*PAPER, *SCS, flag, value))
    with pytest.raises(SystemExit) as ended:
        run_if_ours(args)
    assert ended.value.code == 2
    assert f"{flag} has no meaning for --name m_flyt" in capsys.readouterr().err
    assert not job.save_path.exists()


def test_a_method_s_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'scs' is registered already"):
        registry.register(registry.METHODS["scs"])
    expected = {"m_flyt", "scs", "hcs", "sum", "standardized_sum", "in_weighted_sum"}
    assert expected <= set(method_names())


def test_help_lists_methods_and_flags() -> None:
    code, stdout, _ = in_process("--help")
    assert code == 0
    for name in (*method_names(), "--scores_dir", "--fraction", "--drop_nonfinite", "mflyt.pt"):
        assert name in stdout
