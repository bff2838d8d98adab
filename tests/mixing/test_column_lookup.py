"""The file that a column is read from, the message that reports it, and refused names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from datacomp_flyt.cli import main
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.report.scores import default_columns
from tests.baselines_plugin.job import Job, in_process
from tests.conftest import make_pool, refusal, write_files, write_parquet

POOL = make_pool(60)
CLIP_L14 = "clip_l14_similarity_score"
DRAWS = ("--num_samples", 200, "--repetition_penalty", 0.4)
MIXED = ("--name", "sum", *DRAWS)
VALUES = np.random.default_rng(3).normal(0, 1, 60)


def job_with(folder: Path, **scores: Any) -> Job:
    named = {name.replace("_", "-"): column for name, column in scores.items()}
    return Job(POOL._replace(scores={"uid": POOL.uids, **named}), folder).write()


def columns_of(job: Job, drop: bool = False) -> Columns:
    sources = (str(job.metadata), str(job.scores), 1)
    return Columns(read_pool(sources[0], 1, progress=False), *sources, False, drop)


def refused(*words: object) -> str:
    """Return the stderr of a command that ends with exit code 2."""
    stderr = io.StringIO()
    with (
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        main([str(word) for word in words])
    assert ended.value.code == 2
    return stderr.getvalue()


# ------------------------------------------------------------- every command that reads columns


def select(job: Job, *columns: str) -> str:
    code, _, stderr = in_process(*job.flags(*MIXED, "--score_columns", *columns))
    assert code == 2
    return stderr


def select_in_files(job: Job, *columns: str) -> str:
    work = ("--work_dir", job.folder / "work")
    code, _, stderr = in_process(*job.flags(*MIXED, "--score_columns", *columns, *work))
    assert code == 2
    return stderr


def two_stages(job: Job, *columns: str) -> str:
    flags = ("--name", "neg_clip_loss_norm_sim", *DRAWS, "--score_columns", *columns)
    code, _, stderr = in_process(*job.flags(*flags))
    assert code == 2
    return stderr


def accuracies(job: Job, *columns: str) -> str:
    pairs = [f"{column}={0.2 + n / 10}" for n, column in enumerate(columns)]
    flags = ("--name", "in_weighted_sum", *DRAWS, "--imagenet_accuracies", *pairs)
    code, _, stderr = in_process(*job.flags(*flags))
    assert code == 2
    return stderr


def train(job: Job, *columns: str) -> str:
    pytest.importorskip("torch.func")
    from datacomp_flyt.flyt.uid_features import score_features

    arguments = (str(job.scores), columns, 1, str(job.metadata))
    return refusal(score_features, *arguments, progress=False)


def report(job: Job, *columns: str) -> str:
    pytest.importorskip("matplotlib")
    subset = job.folder / "all.npy"
    np.save(subset, np.sort(read_pool(str(job.metadata), 1, progress=False).uids))
    inputs = ("--metadata_dir", job.metadata, "--scores_dir", job.scores, "--subset", subset)
    return refused("report", *inputs, "--score_columns", *columns, "--out", job.folder / "out")


COMMANDS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (select, select_in_files, two_stages, accuracies, train, report)
}


def every_command(test: Any) -> Any:
    return pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())(test)


@every_command
@pytest.mark.parametrize("columns", [("DFN-FT", "DFN-FT"), ("vit-l-14", "DFN-FT", "vit-l-14")])
def test_a_name_twice(tmp_path: Path, command: Callable[..., str], columns: tuple[str]) -> None:
    if command is two_stages and len(columns) > 2:
        columns = ("vit-l-14", "vit-l-14")
    message = command(job_with(tmp_path, DFN_FT=VALUES), *columns)
    assert f"{columns[0]!r} twice" in message


@every_command
def test_two_names_of_one_column(tmp_path: Path, command: Callable[..., str]) -> None:
    message = command(job_with(tmp_path, DFN_FT=VALUES), "vit-l-14", CLIP_L14)
    assert f"'vit-l-14' and {CLIP_L14!r} are one column" in message
    assert "--metadata_dir" in message


@every_command
def test_text_in_the_table_never_falls_back_on_the_metadata(
    tmp_path: Path, command: Callable[..., str]
) -> None:
    job = job_with(tmp_path, DFN_FT=VALUES, vit_l_14=["0.5"] * 60)
    message = command(job, "DFN-FT", "vit-l-14")
    assert f"{job.scores / 'part-00000.parquet'} has column 'vit-l-14' of type string" in message


@every_command
@pytest.mark.parametrize("spelled", ["ViT-L-14", "vit_l_14", "vit l 14", "VIT-L/14", " vit-l-14"])
def test_another_spelling_never_falls_back_on_the_metadata(
    tmp_path: Path, command: Callable[..., str], spelled: str
) -> None:
    job = job_with(tmp_path, DFN_FT=VALUES)
    scores = {"uid": POOL.uids, "DFN-FT": VALUES, spelled: VALUES}
    write_parquet(job.scores / "part-00000.parquet", scores)
    message = command(job, "DFN-FT", "vit-l-14")
    assert repr(spelled) in message
    assert "rename the column" in message


def test_the_m_flyt_scorer(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    job = job_with(tmp_path, DFN_FT=[True] * 60)
    flags = ("--scoring_model", "paper", "--allow_missing_scores")
    inputs = ("--metadata_dir", job.metadata, "--scores_dir", job.scores)
    message = refused("score", "--scorer", "m_flyt", *flags, *inputs, "--num_workers", 1)
    assert "has column 'DFN-FT' of type bool" in message


SELF_FILTER = {
    ("model_vas",): "twice",
    ("a", "a"): "twice",
    ("a", "model_alignment"): "twice",
    ("a", "t", "a"): "twice",
    ("a", "t"): "has column 't' of type string",
    ("a", "vit-l-14"): "no column 'vit-l-14'",
}


@pytest.mark.parametrize(("columns", "message"), SELF_FILTER.items(), ids=map(str, SELF_FILTER))
def test_self_filter_refuses_before_it_trains(
    tmp_path: Path, columns: tuple[str, ...], message: str
) -> None:
    pytest.importorskip("jinja2")
    job = job_with(tmp_path, a=VALUES, t=["0.5"] * 60)
    flags = ("--shards_dir", job.metadata, "--selector", "m_flyt", "--out", tmp_path / "run")
    inputs = ("--downstream_dir", job.metadata, "--scores_dir", job.scores)
    script = ("--samples_per_round", 100, "--", "-m", "open_clip_train.main", "--epochs=1")
    assert message in refused("self_filter", *flags, *inputs, "--score_columns", *columns, *script)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ messages on the source


def test_the_source_of_each_column_is_printed(tmp_path: Path) -> None:
    job = Job(POOL, tmp_path).write(3, 1)
    scores = {name: POOL.scores[name] for name in ("uid", "DFN-FT", "FLYT")}
    for path in job.scores.iterdir():
        path.unlink()
    write_files(job.scores, scores, 1)
    write_files(job.scores / "more", {"uid": POOL.uids, "normsim_inf": VALUES}, 2)
    flags = ("--name", "sum", "--score_columns", "vit-l-14", "normsim_inf", "DFN-FT")
    expected = [
        f"column 'vit-l-14' from --metadata_dir {job.metadata}: {CLIP_L14} (3 files)",
        f"column 'normsim_inf' from --scores_dir {job.scores} (2 files)",
        f"column 'DFN-FT' from --scores_dir {job.scores} (1 file)",
    ]
    for more in ((), ("--work_dir", tmp_path / "work")):
        output = job.select(*flags, *DRAWS, *more).splitlines()
        assert [line for line in output if line.startswith("column ")] == expected


def test_a_table_s_column_under_the_metadata_s_name(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    write_parquet(job.scores / "part-00000.parquet", {"uid": POOL.uids, CLIP_L14: VALUES})
    output = job.select("--name", "scs", "--column", "vit-l-14", *DRAWS)
    assert f"column 'vit-l-14' from --scores_dir {job.scores}: {CLIP_L14} (1 file)" in output
    own = job_with(tmp_path / "own", vit_l_14=VALUES)
    own.select("--name", "scs", "--column", "vit-l-14", *DRAWS)
    assert own.save_path.read_bytes() == job.save_path.read_bytes()


def test_columns_read_twice_are_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = columns_of(job_with(tmp_path, a=VALUES, b=VALUES))
    again = columns.each_time(columns.find(["a", "b"]))
    assert [len(list(again)), len(list(again))] == [2, 2]
    assert capsys.readouterr().out.count("column 'a'") == 1


@pytest.mark.parametrize("flag", ["--weights", "--scores"])
def test_training_prints_the_column_of_its_weights(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from datacomp_flyt.open_clip_hook.log_weights import read_scores, read_weights

    read = read_weights if flag == "--weights" else read_scores
    path = write_parquet(
        tmp_path / "a.parquet", {"uid": POOL.uids, "w": abs(VALUES), "t": ["x"] * 60}
    )
    read(path, None, None)
    assert capsys.readouterr().out == f"column 'w' from {flag} {path} (1 file)\n"
    with mock.patch.dict("os.environ", {"RANK": "3"}):
        read(path, "w", None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("string", ["0.5"] * 60),
        ("bool", [True] * 60),
        ("list", [[0.5]] * 60),
        ("binary", [b"1"] * 60),
        ("dictionary", pa.array(["0.5"] * 60).dictionary_encode()),
        ("struct", [{"w": 1.0}] * 60),
    ],
)
def test_weights_of_another_type(tmp_path: Path, kind: str, column: Any) -> None:
    pytest.importorskip("torch")
    from datacomp_flyt.open_clip_hook.log_weights import read_weights

    path = write_parquet(tmp_path / "a.parquet", {"uid": POOL.uids, "w": column, "v": VALUES})
    assert f"{path} has column 'w' of type {kind}" in refusal(read_weights, path, "w", None)


# ------------------------------------------------------------------------ a report's columns


def listed(job: Job) -> list[str]:
    tables = open_shards(str(job.scores), "--scores_dir", 1, recursive=True)
    return default_columns(open_shards(str(job.metadata), "--metadata_dir", 1), tables)


def read_default(job: Job) -> Iterator[Any]:
    columns = columns_of(job)
    return columns.read(columns.find(listed(job)))


def test_a_report_leaves_out_text_and_refuses_a_published_name_of_text(tmp_path: Path) -> None:
    job = job_with(tmp_path, DFN_FT=VALUES, url=["x"] * 60, notes=[None] * 60)
    assert listed(job) == ["vit-b-32", "vit-l-14", "DFN-FT"]
    assert len(list(read_default(job))) == 3
    wrong = job_with(tmp_path / "wrong", DFN_FT=["0.5"] * 60, url=["x"] * 60)
    assert "has column 'DFN-FT' of type string" in refusal(read_default, wrong)


def test_a_report_shows_a_table_s_column_of_the_metadata_s_name_once(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    write_parquet(job.scores / "part-00000.parquet", {"uid": POOL.uids, CLIP_L14: VALUES})
    assert listed(job) == ["vit-b-32", CLIP_L14]
    assert len(list(read_default(job))) == 2


def test_a_report_s_score_may_be_shown_under_another_name(tmp_path: Path) -> None:
    from datacomp_flyt.report.sample import read_sample
    from datacomp_flyt.report.scores import read_scores

    job = job_with(tmp_path, DFN_FT=VALUES)
    sample = read_sample(open_shards(str(job.metadata), "--metadata_dir", 1), 1000, 0, 1)
    shown, ranking = read_scores(
        *(sample, ["vit-l-14", "DFN-FT"], None, CLIP_L14),
        metadata_dir=str(job.metadata), scores_dir=str(job.scores), num_workers=1,
    )  # fmt: skip
    assert list(shown) == ["vit-l-14", "DFN-FT"]
    assert np.array_equal(ranking.values, shown["vit-l-14"])
