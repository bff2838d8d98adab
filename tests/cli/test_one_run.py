"""Commands that write a folder: one run at a time, and on shards that do not change."""

from __future__ import annotations

import shutil
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("open_clip")

import torch

from datacomp_flyt.clip import embed as embedding
from datacomp_flyt.demo import POOL
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.flyt import train
from datacomp_flyt.flyt.training_config import TrainingConfig
from datacomp_flyt.open_clip_hook import hook as hook_module
from datacomp_flyt.open_clip_hook.hook import Hook
from datacomp_flyt.scorers.base import score as score_module
from datacomp_flyt.scorers.clip_score import ClipScore
from datacomp_flyt.self_filtering import self_filter
from datacomp_flyt.self_filtering.plan import SelfFilterOptions
from tests.cli.commands import run
from tests.conftest import refusal
from tests.engines.here import Here

TAKEN = "is being written by another run"
COLUMN = "vit-b-32"


def refused(place: Path) -> None:
    """Check that another run that would write there is refused."""

    def take() -> None:
        with lock_outputs(place):
            pass

    assert TAKEN in refusal(take)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POOL / "metadata", tmp_path / "metadata"))


def scoring(metadata: Path, scores: Path, *flags: object) -> list[object]:
    words: list[object] = ["score", "--scorer", "clip_score", "--metadata_dir", metadata]
    return [*words, "--scores_dir", scores, "--num_workers", 1, *flags]


def test_two_scorings_of_one_column(
    metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores" / COLUMN).mkdir(parents=True)
    with lock_outputs(tmp_path / "scores" / COLUMN):
        code, _, said = run(capsys, *scoring(metadata, tmp_path / "scores"))
    assert code == 2
    assert str(tmp_path / "scores" / COLUMN) in said
    assert TAKEN in said
    assert list((tmp_path / "scores" / COLUMN).iterdir()) == []


def test_a_shard_that_changes_gets_no_score_table(
    metadata: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next run scores the shard."""
    first, second, *_ = sorted(metadata.glob("*.parquet"))
    table = pq.read_table(second)
    turned = table.take(list(range(table.num_rows))[::-1])
    real = ClipScore.score_rows

    def changing(self: Any, shard: Any, state: Any, counts: Any) -> Any:
        found = real(self, shard, state, counts)
        if shard.path == str(second):
            pq.write_table(turned, second)
        return found

    monkeypatch.setattr(score_module, "make_engine", lambda *_, **__: Here())
    monkeypatch.setattr(ClipScore, "score_rows", changing)
    code, _, said = run(capsys, *scoring(metadata, tmp_path / "scores"))
    assert code == 2
    assert f"{second} has changed since this run began to read" in said
    folder = tmp_path / "scores" / COLUMN
    assert sorted(path.name for path in folder.iterdir()) == [first.name, "_settings.json"]
    monkeypatch.setattr(ClipScore, "score_rows", real)
    assert run(capsys, *scoring(metadata, tmp_path / "scores"))[0] == 0
    assert pq.read_table(folder / second.name)["uid"].to_pylist() == turned["uid"].to_pylist()


def test_scoring_by_a_manifest(
    metadata: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_module, "make_engine", lambda *_, **__: Here())
    path = tmp_path / "m.json"
    assert run(capsys, "manifest", metadata, "--save_path", path)[0] == 0
    gone = sorted(metadata.glob("*.npz"))[1]
    gone.rename(tmp_path / "kept.npz")
    words = scoring(metadata, tmp_path / "scores", "--manifest", path)
    code, _, said = run(capsys, *words)
    assert code == 2
    assert f"1 missing: {gone.name}" in said
    (tmp_path / "kept.npz").rename(gone)
    assert run(capsys, *words)[0] == 0
    tars = ["score", "--scorer", "dfn", "--shards_dir", POOL / "shards", "--model", "flyt-tiny"]
    words = [*tars, "--checkpoint", "random", "--scores_dir", tmp_path / "s", "--manifest", path]
    code, _, said = run(capsys, *words)
    assert code == 2
    assert "8 missing" in said
    assert "4 additional: 00000000.tar" in said


def test_tars_that_change_get_no_embeddings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Path(shutil.copytree(POOL / "shards", tmp_path / "shards"))

    def changing(engine: Any, make: Any, items: Any, write: Any, **others: Any) -> Any:
        (shards / "00000000.tar").write_bytes(b"another")
        return write("00000000", None)

    monkeypatch.setattr(embedding, "run_shards", changing)
    words = ["embed", "--shards_dir", shards, "--encoder", "b32=flyt-tiny:random"]
    code, _, said = run(capsys, *words, "--metadata_dir", tmp_path / "made")
    assert code == 2
    assert "00000000.tar has changed since this run began" in said
    with lock_outputs(tmp_path / "made"):
        code, _, said = run(capsys, *words, "--metadata_dir", tmp_path / "made")
    assert code == 2
    assert TAKEN in said


def test_two_demos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_outputs(tmp_path):
        code, _, said = run(capsys, "demo", "--quick", "--work_dir", tmp_path)
    assert code == 2
    assert TAKEN in said


def test_two_self_filterings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        self_filter, "run_steps", lambda steps, folder, **_: asked.append(refused(folder))
    )
    options = SelfFilterOptions(
        trainer=("-m", "open_clip_train.main", "--model", "flyt-demo"),
        shards_dir=str(POOL / "shards"),
        out=str(tmp_path / "run"),
        samples_per_round=100,
        reports=False,
    )
    self_filter.self_filter(options)
    assert len(asked) == 1
    with lock_outputs(tmp_path / "run"):
        assert TAKEN in refusal(self_filter.self_filter, options)
    assert len(asked) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_two_trainings(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks other than the first write nothing and take no lock."""
    asked = []
    monkeypatch.setattr(train, "rank_and_world_size", lambda: (rank, 2))
    monkeypatch.setattr(
        train, "_train_into", lambda folder, config, device: asked.append(refused(folder))
    )
    config = TrainingConfig(preset="tiny", train_data="t", downstream_dir="d", output_dir=tmp_path)
    if rank == 0:
        train._train(config, torch.device("cpu"))
        assert len(asked) == 1
        with lock_outputs(tmp_path):
            assert TAKEN in refusal(train._train, config, torch.device("cpu"))
    else:
        with lock_outputs(tmp_path):  # of rank 0
            train._train(config, torch.device("cpu"))
    assert len(asked) == 1


class Reached(Exception):
    """Raised when the trainer asks for its data."""


def hooked(monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Install the hook in a trainer that opens no data."""

    def expand_urls(where: str) -> Any:
        raise Reached

    data, stock = types.ModuleType("data"), types.ModuleType("main")
    data.expand_urls = expand_urls  # type: ignore[attr-defined]
    trainer: Any = types.SimpleNamespace(data=data, main=stock)
    hook = Hook(trainer)
    hook._stock[stock, "get_data"] = None
    monkeypatch.setattr(hook_module, "check_data", lambda args, trainer: None)
    return hook


def trained(folder: Path, name: str | None, rank: int = 0) -> Namespace:
    """Make the flags of a trainer."""
    return Namespace(
        train_data="x", dataset_type="webdataset", rank=rank, logs=str(folder), name=name
    )


@pytest.mark.parametrize("name", [None, "run"])
def test_data_without_a_run(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script may call get_data itself; open_clip's main() gives the name and the folder."""
    with pytest.raises(Reached):
        hooked(monkeypatch)._get_data(trained(tmp_path / "logs", name), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_two_runs_of_a_trainer(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, args = hooked(monkeypatch), trained(tmp_path, "run", rank)
    (tmp_path / "run").mkdir()
    with pytest.raises(Reached):
        hook._get_data(args, None)
    if rank == 0:
        refused(tmp_path / "run")
    hook.remove()
    hook = hooked(monkeypatch)
    with lock_outputs(tmp_path / "run"):
        if rank == 0:
            assert TAKEN in refusal(hook._get_data, args, None)
        else:
            with pytest.raises(Reached):
                hook._get_data(args, None)
    assert list((tmp_path / "run").iterdir()) == []
