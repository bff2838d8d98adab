"""A full disk gives one sentence with the file's name, no new file, and keeps an old file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datacomp_flyt.files.memmap_arrays import SpillFile, create_array, zeros_like_storage
from datacomp_flyt.files.settings_file import check_settings
from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel
from datacomp_flyt.mixing.m_flyt import save_mixing_model
from datacomp_flyt.pool.external_sort.uid_buckets import Rows, write_run
from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.scorers.base import passes
from datacomp_flyt.scorers.base import score_pool as score_job
from datacomp_flyt.scorers.base.scorer import ScoredShard
from datacomp_flyt.scorers.e_flyt.glu_head_file import save_glu_head
from datacomp_flyt.scorers.linear_classifier.classifier_file import LinearModel, save_classifier
from datacomp_flyt.selection.scores import Scores
from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.conftest import make_pool, refusal, sorted_uids
from tests.faults.conftest import files_of_at_most
from tests.scorers.base.made import made_head

EXAMPLES = 3000
POOL = make_pool(EXAMPLES)
UIDS = sorted_uids(POOL.uids)
VALUES = np.random.default_rng(0).normal(size=(EXAMPLES, 2)).astype(np.float32)
RNG = np.random.default_rng(1)

Write = Callable[[Path], object]


def embedded(path: Path) -> None:
    pytest.importorskip("open_clip")
    from datacomp_flyt.clip.embedded_shard import EmbeddedShard, write_embedded

    table = pa.table({"uid": POOL.uids, "score": VALUES[:, 0]})
    write_embedded(path.parent, path.stem, EmbeddedShard(table, {"b32_img": VALUES}, Counter()))


def checkpoint(path: Path) -> None:
    torch = pytest.importorskip("torch")
    from datacomp_flyt.flyt.checkpoint import save_checkpoint

    save_checkpoint(path.parent, 3, {}, {"weights": torch.arange(5000.0)})


def log_line(path: Path) -> None:
    pytest.importorskip("torch")
    from datacomp_flyt.flyt.training_log import TrainingLog

    with TrainingLog(path.parent, 2, 0, 1, 8, (), {}) as log:
        log.step(0, {f"weight/{index}": 1 / 3 for index in range(2000)})


WRITERS: dict[str, tuple[str, Write]] = {
    "subset": ("s.npy", lambda path: write_subset(path, UIDS)),
    "scores of a selection": (
        "s.parquet",
        lambda path: Scores(UIDS, VALUES[:, 0], "FLYT").save(path),
    ),
    "mixing model": (
        "m.safetensors",
        lambda path: save_mixing_model(
            LinearMixingModel(tuple(map(str, range(3000))), (1.0,) * 3000), path
        ),
    ),
    "scores of a shard": (
        "s.parquet",
        lambda path: score_job._write_scores(
            path, ScoredShard(UIDS, VALUES, Counter()), ("a", "b")
        ),
    ),
    "state of a pass": ("1.npz", lambda path: passes._save(path, {"values": VALUES})),
    "settings": (
        "_settings.json",
        lambda path: check_settings(path.parent, {"columns": ["x" * 20] * 2000}, "go"),
    ),
    "head": ("h.safetensors", lambda path: save_glu_head(made_head(64, 64), path)),
    "classifier": (
        "c.safetensors",
        lambda path: save_classifier(LinearModel(RNG.normal(size=9000), 0.1, ("b32_img",)), path),
    ),
    "run of rows": (
        "r.safetensors",
        lambda path: write_run(path, Rows(UIDS["f0"], UIDS["f1"], {"a": VALUES[:, 0]}), 4),
    ),
    "array": ("a.npy", lambda path: create_array(path, EXAMPLES, np.float64)),
    "embeddings": ("00000000.npz", embedded),
    "checkpoint": ("checkpoint.pt", checkpoint),
    "log": ("metrics.jsonl", log_line),
}
APPENDED = ("log",)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_limit_on_the_file_size(kind: str, tmp_path: Path) -> None:
    """The disk may be full at any point of the file."""
    name, write = WRITERS[kind]
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole / name)
    size = (whole / name).stat().st_size
    for index, at_most in enumerate([0, 1, size // 3, size // 2, size - 4097, size - 1]):
        folder = tmp_path / str(index)
        folder.mkdir()
        with files_of_at_most(max(at_most, 0)):
            message = refusal(write, folder / name)
        assert f"{folder / name} cannot be written" in message
        assert kind in APPENDED or not list(folder.iterdir())


@pytest.mark.parametrize("kind", [name for name in WRITERS if name != "log"])
def test_an_older_file_stays(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    if kind == "settings":
        pytest.skip("an existing settings file is not written again")
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with files_of_at_most(len(before) // 2):
        refusal(write, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert all(path.name[0] != "." for path in tmp_path.iterdir())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_small_disk(kind: str, small_disk: Path) -> None:
    name, write = WRITERS[kind]
    chunk = 1 << 18
    while chunk >= 1 << 12:  # fill all but 4 kB of the disk
        with (small_disk / "other").open("ab", buffering=0) as file:
            try:
                file.write(bytes(chunk))
            except OSError:
                chunk //= 2
                continue
    message = refusal(write, small_disk / name)
    assert f"{small_disk / name} cannot be written" in message
    left = [path.name for path in small_disk.iterdir()]
    assert sorted(left) == sorted(["other", *([name] if kind in APPENDED else [])])


def test_temporary_arrays(small_disk: Path) -> None:
    array = create_array(small_disk / "a.npy", 1000, np.float64)
    assert "has no room for" in refusal(zeros_like_storage, array, np.float64, 1 << 20)
    spill_file = SpillFile(array, np.dtype(np.float64))
    chunk = spill_file.put(np.arange(1000.0))
    assert "cannot be written" in refusal(spill_file.put, np.zeros(1 << 20))
    assert np.array_equal(spill_file.get(chunk), np.arange(1000.0))
    assert [path.name for path in small_disk.iterdir()] == ["a.npy"]


# ---------------------------------------------------------------------------------- commands

M_FLYT = ("--name", "m_flyt", "--scoring_model", "paper", "--num_samples", 5000)
ROUNDS = (*M_FLYT, "--repetition_penalty", 0.4, "--sampling_batch_size", 40)


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("at_most", [0, 10_000, 60_000])
def test_select(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_files: bool, at_most: int
) -> None:
    """When there is free space again, the command gives the result of an undisturbed run."""
    monkeypatch.chdir(tmp_path)
    whole, job = Job(POOL, tmp_path).write(2), Job(POOL, tmp_path)
    assert in_process(*whole.flags(*ROUNDS)).code == 0
    wanted = whole.save_path.read_bytes()
    work: tuple[Any, ...] = ("--work_dir", "work") if in_files else ()
    flags = job.flags(*ROUNDS, *work, "--save_scores", "scores.parquet")
    with files_of_at_most(at_most):
        outcome = in_process(*flags)
    assert_refused(outcome, "too large")
    assert job.save_path.read_bytes() == wanted
    assert not Path("scores.parquet").exists()
    job.save_path.unlink()
    assert in_process(*flags).code == 0
    assert job.save_path.read_bytes() == wanted
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_select_on_a_small_disk(tmp_path: Path, small_disk: Path) -> None:
    job = Job(POOL, tmp_path).write(2)
    outcome = in_process(*job.flags(*ROUNDS, "--work_dir", small_disk / "work"))
    assert_refused(outcome, small_disk, "No space left")
    assert not job.save_path.exists()


def test_score(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The driver writes the workers' results; a failed write ends it, and no shard is lost."""
    pytest.importorskip("torch")
    from tests.cli.scoring import NPZ, files_in, score

    assert score(tmp_path / "whole", "clip_score", *NPZ) == 0
    whole = files_in(tmp_path / "whole")
    capfd.readouterr()
    with files_of_at_most(2000):
        assert score(tmp_path / "scores", "clip_score", *NPZ) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith(f"datacomp-flyt score: error: {tmp_path / 'scores'}")
    assert "cannot be written (File too large)" in said[-1]
    assert not [name for name in files_in(tmp_path / "scores") if ".parquet" in name]
    assert score(tmp_path / "scores", "clip_score", *NPZ) == 0
    assert files_in(tmp_path / "scores") == whole
