"""The log of a run in metrics.jsonl, terminal, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from safetensors.numpy import load_file

from datacomp_flyt.flyt.training_log import TrainingLog
from tests.flyt.runs import COLUMNS, Data, make_data, metrics_of, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


def log_of(folder: Path, first: int = 0, every: int = 2, **options: Any) -> TrainingLog:
    return TrainingLog(folder, 7, first, every, 16, options.pop("to", ()), {"seed": 3}, **options)


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in metrics_of(folder)]


def test_lines_every_k_steps_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_of(tmp_path) as log:
        for step in range(7):
            log.step(step, {"loss": step / 3, "bad": math.nan, "huge": math.inf})
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    assert [line["loss"] for line in lines] == [0.333333, 1.0, 1.66667, 2.0]
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        actual = json.loads(text, parse_constant=pytest.fail)  # JSON has no NaN
        assert actual["bad"] is actual["huge"] is None
        assert actual["pairs_per_second"] > 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown] == ["2/7", "4/7", "6/7", "7/7"]
    assert "loss 0.33333" in shown[0]


def test_speed_is_measured_since_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 16 pairs a step: 1 step takes 4 s, 2 take 1 s, 2 take 2 s and 1 takes 1 s."""
    seconds = iter([0.0, 4.0, 5.0, 7.0, 8.0])
    monkeypatch.setattr("datacomp_flyt.flyt.training_log.time.perf_counter", lambda: next(seconds))
    with log_of(tmp_path, first=1) as log:
        for step in range(1, 7):
            log.step(step, {})
    assert [line["pairs_per_second"] for line in metrics_of(tmp_path)] == [4, 32, 16, 16]


def test_lines_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = ['{"step": 2, "loss": 1.0}', '{"step": 4, "loss": 0.5}']
    path.write_text("\n".join([*kept, '{"step": 6, "loss": 0.1}', "", '{"step": 8, "lo']))
    with log_of(tmp_path, first=4):
        pass
    assert path.read_text().splitlines() == kept
    with log_of(tmp_path, first=0):
        pass
    assert path.read_text() == ""


def test_other_ranks_log_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log_of(tmp_path, to=("tensorboard", "wandb"), enabled=False) as log:
        for step in range(7):
            log.step(step, {"loss": 1.0})
        log.say("hello")
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_weights_and_losses_of_a_run(
    tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert train({**data.flags(output), "log_every": 4, "num_steps": 7, "scoring_lr": 0.3}) == 0
    lines = metrics_of(output)
    assert [line["step"] for line in lines] == [4, 7]
    weights = load_file(output / "scoring_model.safetensors")["weights"].tolist()
    actual = [lines[-1][f"weight/{column}"] for column in COLUMNS]
    assert actual == pytest.approx(weights, rel=1e-5)
    for line in lines:
        assert 1 < line["effective_batch_size"] <= 8
        assert 1 / 8 <= line["largest_weight"] < 1
        # the entropy is between those of uniform weights over the effective and the whole batch
        assert math.log(line["effective_batch_size"]) <= line["weight_entropy"] <= math.log(8)
    shown = capsys.readouterr().out
    assert f"weight/{COLUMNS[1]}" in shown


def test_tensorboard(tmp_path: Path, data: Data) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "out"
    assert train({**data.flags(output), "report_to": ["tensorboard"], "log_every": 3}) == 0
    actual = events.EventAccumulator(str(output / "tensorboard"))
    actual.Reload()
    lines = metrics_of(output)
    assert set(actual.Tags()["scalars"]) == lines[0].keys() - {"step"}
    for name in ("upstream_loss", f"weight/{COLUMNS[0]}"):
        scalars = [(event.step, event.value) for event in actual.Scalars(name)]
        assert [step for step, _ in scalars] == [3, 6]
        expected = [line[name] for line in lines]
        assert [value for _, value in scalars] == pytest.approx(expected, rel=1e-4)


class StandIn(types.ModuleType):
    """A stand-in for wandb that records its calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: dict[str, Any] = {}
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def init(self, **options: Any) -> StandIn:
        self.started = options
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.sent.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folders = tmp_path / "a" / "run", tmp_path / "b" / "run"
    names = []
    for folder in folders:
        folder.mkdir(parents=True)
        with log_of(folder, to=("wandb",)) as log:
            for step in range(7):
                log.step(step, {"loss": float(step)})
        names.append(wandb.started["id"])
    assert wandb.finished
    assert wandb.started["config"] == {"seed": 3}
    assert [step for step, _ in wandb.sent] == [2, 4, 6, 7] * 2
    assert wandb.sent[0][1]["loss"] == 1.0
    # a resumed run continues its own record, and not that of another folder with this name
    assert names[0] != names[1]
    with log_of(folders[0], first=4, to=("wandb",)):
        pass
    assert wandb.started["id"] == names[0]
