"""No command replaces its inputs, or writes a file that its next run would read."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.cli import main
from datacomp_flyt.demo import POOL as DEMO
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.subset import read_subset, write_subset
from datacomp_flyt.self_filtering.finalize import finalize
from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.conftest import make_pool, refusal, sorted_uids, write_parquet

FilesIn = Callable[[], dict[str, bytes]]
POOL = make_pool(30)
DRAWS = ("--num_samples", 50, "--repetition_penalty", 0.3)
SCS = ("--name", "scs", "--column", "FLYT", *DRAWS)
SUM = ("--name", "standardized_sum", *DRAWS)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Make a pool with an npz, score tables in sub-folders, and links of several kinds."""
    job = Job(POOL, tmp_path).write(2)
    np.savez(job.metadata / "part-00000.npz", b32_img=np.zeros((15, 4), np.float16))
    (job.scores / "deep").mkdir()
    write_parquet(job.scores / "deep" / "more.parquet", {"uid": POOL.uids, "scs": np.zeros(30)})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_parquet(elsewhere / "kept.parquet", {"uid": POOL.uids, "other": np.zeros(30)})
    (job.scores / "kept.parquet").symlink_to(elsewhere / "kept.parquet")
    (elsewhere / "linked.npy").symlink_to(job.metadata / "part-00001.parquet")
    (elsewhere / "hard.npy").hardlink_to(job.scores / "part-00000.parquet")
    (elsewhere / "folder").symlink_to(job.metadata)
    (elsewhere / "tables").mkdir()
    write_parquet(elsewhere / "tables" / "a.parquet", {"uid": POOL.uids, "more": np.zeros(30)})
    (job.scores / "tables").symlink_to(elsewhere / "tables")
    return job


REFUSED = {
    "a metadata file": ("--save_path", "metadata/part-00000.parquet", "--metadata_dir"),
    "the npz beside one": ("--save_path", "metadata/part-00000.npz", "--metadata_dir"),
    "a new metadata file": ("--save_path", "metadata/new.parquet", "--metadata_dir"),
    "a new npz": ("--save_path", "metadata/part-00001.npz", "--metadata_dir"),
    "a score table": ("--save_path", "scores/part-00001.parquet", "--scores_dir"),
    "a new score table that is none": ("--save_path", "scores/new.parquet", "--scores_dir"),
    "scores among the metadata": ("--save_scores", "metadata/scs.parquet", "--metadata_dir"),
    "scores over scores": ("--save_scores", "scores/part-00000.parquet", "--scores_dir"),
    "scores over deep ones": ("--save_scores", "scores/deep/more.parquet", "--scores_dir"),
    "a column that is there": ("--save_scores", "scores/deep/new.parquet", "--scores_dir"),
    "what a link leads to": ("--save_scores", "elsewhere/kept.parquet", "--scores_dir"),
    "a link to metadata": ("--save_path", "elsewhere/linked.npy", "--metadata_dir"),
    "a hard link to scores": ("--save_path", "elsewhere/hard.npy", "--scores_dir"),
    "through a linked folder": ("--save_path", "elsewhere/folder/new.npz", "--metadata_dir"),
    "a name in capitals": ("--save_path", "metadata/NEW.PARQUET", "--metadata_dir"),
    "a folder that is linked": ("--save_path", "elsewhere/tables/new.parquet", "--scores_dir"),
    "a way around": ("--save_path", "scores/../metadata/x.parquet", "--metadata_dir"),
    "a file of the work folder": ("--save_path", "work/uids.npy", "--work_dir"),
}


@pytest.mark.parametrize(("flag", "place", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_selection(
    job: Job, tmp_path: Path, files_in: FilesIn, flag: str, place: str, named: str
) -> None:
    work = ("--work_dir", tmp_path / "work") if named == "--work_dir" else ()
    before = files_in()
    outcome = in_process(*job.flags(*SCS, *work), flag, str(tmp_path / place))
    assert_refused(outcome, f"{flag} {tmp_path / place}", named)
    assert files_in() == before
    assert "running" not in outcome.stdout


@pytest.mark.parametrize("flag", ["--save_path", "--save_scores", "--save_scoring_model"])
@pytest.mark.parametrize("read", ["--scoring_model", "--manifest"])
def test_single_files(job: Job, tmp_path: Path, files_in: FilesIn, flag: str, read: str) -> None:
    model = tmp_path / "m.safetensors"
    job.select(*SUM, "--save_scoring_model", model)
    manifest = tmp_path / "m.json"
    assert run("manifest", job.metadata, "--save_path", manifest) == 0
    before = files_in()
    path = model if read == "--scoring_model" else manifest
    flags = ("--name", "m_flyt", "--scoring_model", model, *DRAWS, "--manifest", manifest)
    assert_refused(in_process(*job.flags(*flags), flag, str(path)), f"{flag} {path}", read)
    assert files_in() == before


HARMLESS = [
    ("--save_path", "metadata/subset.npy"),
    ("--save_path", "scores/subset.npy"),
    ("--save_scores", "metadata/scores.table"),
    ("--save_scores", "metadata/below/scores.parquet"),
    ("--save_scores", "metadata/_scores.parquet"),
    ("--save_path", "scores/_hidden/subset.parquet"),
    ("--save_scores", "scores/mine/standardized_sum.parquet"),
    ("--save_scoring_model", "scores/model.safetensors"),
    ("--save_scoring_model", "metadata/model.safetensors"),
]


@pytest.mark.parametrize(("flag", "place"), HARMLESS)
def test_what_is_not_read_may_lie_there(job: Job, tmp_path: Path, flag: str, place: str) -> None:
    for _ in range(1 + (place != "scores/mine/standardized_sum.parquet")):
        outcome = in_process(*job.flags(*SUM), flag, str(tmp_path / place))
        assert (outcome.code, outcome.stderr) == (0, "")
    assert (tmp_path / place).is_file()


def test_saved_scores_are_a_table_and_are_not_replaced(job: Job, files_in: FilesIn) -> None:
    where = ("--save_scores", job.scores / "mine" / "scores.parquet")
    job.select(*SUM, *where)
    job.select("--name", "scs", "--column", "standardized_sum", *DRAWS)
    before = files_in()
    assert_refused(in_process(*job.flags(*SUM, *where)), "--save_scores", "--scores_dir")
    other = ("--save_scores", job.scores / "again.parquet")
    assert_refused(in_process(*job.flags(*SUM, *other)), "'standardized_sum'")
    assert files_in() == before


def test_a_run_of_self_filter_keeps_its_result(job: Job, tmp_path: Path) -> None:
    (tmp_path / "run" / "round_0").mkdir(parents=True)
    write_subset(tmp_path / "run" / "round_0" / "subset.npy", sorted_uids(POOL.uids))
    finalize(tmp_path / "run", 0)
    flags = ("--name", "self_filtering", "--run_dir", tmp_path / "run")
    outcome = in_process(
        *job.flags(*flags, table=False), "--save_path", f"{tmp_path}/run/subset.npy"
    )
    assert_refused(outcome, "--save_path", f"--run_dir {tmp_path / 'run'}")
    assert len(read_subset(tmp_path / "run" / "subset.npy")[0]) == 30


# ------------------------------------------------------------------------- other commands


def run(*words: object) -> int:
    """Run `datacomp-flyt` and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return int(ended.value.code or 0)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Link the demo's pool and other inputs of commands into the working directory."""
    shutil.copytree(DEMO, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "metadata", tmp_path / "scores" / "vit-b-32")
    stem = sorted((tmp_path / "metadata").glob("*.npz"))[0]
    (tmp_path / "run").mkdir()
    for name in ("reference_model.pt", "scoring_model.safetensors", "index.html", "extractor.pt"):
        (tmp_path / "run" / name).write_bytes(b"a file")
    shutil.copy(stem, tmp_path / "better.safetensors")
    os.symlink("better.safetensors", tmp_path / "link.safetensors")
    np.save(tmp_path / "subset.npy", np.zeros(1, "u8,u8"))
    return tmp_path


SCORE = "score --scorer clip_score --num_workers 1"
LINEAR = "score --scorer linear_classifier --metadata_dir metadata --num_workers 1"
TRAIN = "train --preset tiny --train_data shards --downstream_dir shards --output_dir run"
BETTER = "train_classifier --negatives metadata --positives"
COMMANDS = [
    "manifest metadata --save_path metadata/new.parquet",
    "manifest . --save_path metadata/new.npz",
    "manifest shards --save_path shards/00000000.tar",
    f"{SCORE} --metadata_dir scores/vit-b-32 --scores_dir scores",
    f"{SCORE} --metadata_dir metadata --scores_dir . --column metadata",
    f"{LINEAR} --classifier scores/IN1K-Classifier/c.safetensors --scores_dir scores "
    "--column IN1K-Classifier",
    f"{BETTER} better.safetensors --out better.safetensors",
    f"{BETTER} better.safetensors --out link.safetensors",
    "embed --shards_dir shards --metadata_dir shards --encoder b32=flyt-tiny:random",
    "embed --shards_dir shards/{00000000..00000003}.tar --metadata_dir shards "
    "--encoder b32=flyt-tiny:random",
    f"{TRAIN} --reference_init run/reference_model.pt",
    f"{TRAIN} --scoring_init run/scoring_model.safetensors",
    f"{TRAIN} --extractor_init run/extractor.pt",
    "report --metadata_dir metadata --out run --subset NAME=run/index.html",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(
    demo: Path, files_in: FilesIn, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    if not command.startswith(("manifest", "report", "train_c")):
        pytest.importorskip("open_clip")
    if "IN1K" in command:
        from datacomp_flyt.scorers.linear_classifier.classifier_file import (
            LinearModel,
            save_classifier,
        )

        path = demo / "scores" / "IN1K-Classifier" / "c.safetensors"
        path.parent.mkdir()
        save_classifier(LinearModel(np.ones(32), 0.1, ("b32_img",)), path)
    before = files_in()
    assert run(*command.split()) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    assert any(
        words in said for words in ("that this command reads", "is read as", "which this command")
    ), said
    assert files_in() == before


@pytest.mark.parametrize(
    "command",
    ["manifest metadata --save_path metadata/m.json", f"{SCORE} --metadata_dir metadata "
     "--scores_dir metadata"],
)  # fmt: skip
def test_commands_that_harm_nothing(demo: Path, command: str) -> None:
    pytest.importorskip("open_clip")
    assert run(*command.split()) == 0


@pytest.mark.parametrize(
    "read", ["round_0/scores", "done", "subset.npy", "round_1", "report/index.html"]
)
def test_rounds_of_self_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    pytest.importorskip("open_clip")
    from datacomp_flyt.self_filtering import self_filter
    from datacomp_flyt.self_filtering.plan import SelfFilterOptions

    out = str(tmp_path / "run")
    planned = Namespace(out=out, reports=False, steps=lambda: [])
    monkeypatch.setattr(self_filter, "plan", lambda options: planned)
    path = tmp_path / "run" / read
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x") if path.suffix else path.mkdir()
    options = SelfFilterOptions(
        trainer=("train.py",), shards_dir="shards", out=out, labels=str(path), reports=False
    )
    assert f"--labels {path}" in refusal(self_filter.self_filter, options)
    assert not (tmp_path / "run" / "logs").exists()


def test_words_that_name_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs are found in every form that commands take; other words are not taken for files."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    path.touch()
    words: list[Any] = [
        "a.pt",
        path,
        "X=a.pt",
        "b32=ViT-B-32:a.pt",
        f"file://{path}",
        ["x", "a.pt"],
    ]
    for word in words:
        assert "--model" in refusal(check_outputs, [Output("--out", path)], {"model": word})
    for word in ("", "s3://bucket/a.pt", "b.pt", 3, None, [], ["x"]):
        check_outputs([Output("--out", path)], {"model": word})
    check_outputs([Output("--out", path)], {"out": "a.pt", "name": "a.pt"})


def test_a_column_joins_its_table_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"uid": ["0" * 32], "x": [1.0]})
    flags = {"scores_dir": str(tmp_path)}
    check_outputs([Output("--save_scores", tmp_path / "b.parquet", column="y")], flags)
    assert "'x'" in refusal(
        check_outputs, [Output("--save_scores", tmp_path / "b.parquet", column="x")], flags
    )
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 1
