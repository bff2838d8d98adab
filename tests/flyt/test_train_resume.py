"""A run that is killed at any moment and resumed gives the bytes of an undisturbed run."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from datacomp_flyt.exits import INTERNAL_ERROR
from datacomp_flyt.flyt import trainer
from datacomp_flyt.flyt.algorithm import Algorithm
from datacomp_flyt.flyt.checkpoint import load_checkpoint, save_checkpoint
from datacomp_flyt.flyt.lookahead_adamw import LookaheadAdamW
from datacomp_flyt.flyt.training_log import TrainingLog
from tests.conftest import refusal
from tests.flyt.runs import (
    Data,
    bytes_of,
    make_data,
    metrics_of,
    start,
    train,
    train_quietly,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without interruption."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert train(data.flags(output)) == 0
    return output


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAt:
    """Replaces a function, and kills the process during its n-th call."""

    def __init__(self, owner: Any, name: str, n: int, instead: Callable[..., object]) -> None:
        self.function, self.n, self.instead = getattr(owner, name), n, instead
        setattr(owner, name, lambda *args, **options: self(*args, **options))

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.n -= 1
        if self.n == 0:
            self.instead(*args, **options)
            kill()
        return self.function(*args, **options)


def half_of_a_file(content: Any, file: Any) -> None:
    whole = io.BytesIO()
    pickle.dump("not a whole torch file", whole)
    file.write(whole.getvalue() * 1000)
    file.flush()


def half_a_line(log: TrainingLog, step: int, metrics: Mapping[str, float]) -> None:
    with log._path.open("a") as file:
        file.write('{"step": ' + f'{step + 1}, "upstream_lo')


def nothing(*_: object) -> None:
    pass


MOMENTS: dict[str, tuple[Any, str, int, Callable[..., object]]] = {
    "before the first checkpoint": (Algorithm, "step", 2, nothing),
    "in the middle of a step": (LookaheadAdamW, "next_state", 4, nothing),
    "while the first checkpoint is written": (torch, "save", 1, half_of_a_file),
    "while a later checkpoint is written": (torch, "save", 2, half_of_a_file),
    "after a checkpoint": (trainer, "save_checkpoint", 2, save_checkpoint),
    "while the log is written": (TrainingLog, "step", 4, half_a_line),
    "between the two results": (trainer, "_save_clip", 1, nothing),
}


def train_until(flags: Mapping[str, Any], moment: str) -> None:
    KillAt(*MOMENTS[moment])
    train_quietly(flags)


def check(output: Path, whole: Path) -> None:
    """Check that results are equal, each step is logged once, and no temporary file remains."""
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    assert bytes_of(output) == bytes_of(whole)
    actual, expected = metrics_of(output), metrics_of(whole)
    assert [line["step"] for line in actual] == [1, 2, 3, 4, 5, 6]
    for line in (*actual, *expected):
        del line["pairs_per_second"]
    assert actual == expected


def slow_unless(names: tuple[str, ...]) -> list[Any]:
    """Return the moments as parameters; those not named are marked slow."""
    return [
        pytest.param(moment, marks=() if moment in names else pytest.mark.slow)
        for moment in MOMENTS
    ]


@pytest.mark.parametrize(
    "moment", slow_unless(("in the middle of a step", "while a later checkpoint is written"))
)
def test_killed_at(tmp_path: Path, data: Data, whole: Path, moment: str) -> None:
    flags = data.flags(tmp_path / "out")
    process = start(train_until, flags, moment)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out" / "reference_model.pt").exists()
    assert train({**flags, "resume": True}) == 0
    check(tmp_path / "out", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(11))
def test_killed_at_random(tmp_path: Path, data: Data, whole: Path, seed: int) -> None:
    """A run with --resume is killed several times from another process."""
    kill_at_random(tmp_path, data, whole, random.Random(seed), 6 if seed else 3)


def kill_at_random(
    folder: Path, data: Data, whole: Path, rng: random.Random, num_kills: int
) -> None:
    began = time.perf_counter()
    start(train_quietly, data.flags(folder / "undisturbed")).join()
    duration = time.perf_counter() - began

    flags = {**data.flags(folder / "out"), "resume": True}
    kills = 0
    while kills < num_kills:
        process = start(train_quietly, flags)
        process.join(rng.uniform(0.0, 0.8) * duration)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:  # the run ended before the kill, so kills come earlier
            shutil.rmtree(folder / "out")
            duration /= 2
        else:
            kills += 1
    assert train(flags) == 0
    check(folder / "out", whole)


class Stop(Exception):
    pass


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "E-FLYT": ("embeddings", {"downstream_loss": "cross_entropy_temperature", "glu_layers": 2}),
    "extractor trained": ("images", {"train_extractor": True, "downstream_loss": "clip"}),
    "float16": ("scores", {"precision": "amp", "num_steps": 6}),
    "SGD, clipped": ("scores", {"optimizer": "sgd", "grad_clip_norm": 0.1, "schedule": "constant"}),
    "frozen": ("scores", {"freeze_reference": True, "tangent": "exact"}),
    "two tasks": (
        "scores",
        {"downstream_tasks": ["pets", "cars"], "task_weights": "balanced", "micro_batch_size": 3},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_checkpoint_has_every_kind_of_state(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    features, changes = VARIANTS[variant]
    outputs = tmp_path / "whole", tmp_path / "resumed"
    runs = [
        {**data.flags(output, features), "num_steps": 4, **changes, "log_every": 2}
        for output in outputs
    ]
    assert train(runs[0]) == 0

    step = Algorithm.step

    def step_or_stop(self: Algorithm, step_index: int, *batches: Any) -> dict[str, float]:
        if step_index == 3:
            raise Stop
        return step(self, step_index, *batches)

    monkeypatch.setattr(Algorithm, "step", step_or_stop)
    assert train(runs[1]) == INTERNAL_ERROR
    monkeypatch.undo()
    # flags that do not affect the result may change
    assert train({**runs[1], "resume": True, "log_every": 1, "max_bad_share": 0.1}) == 0
    assert bytes_of(outputs[1]) == bytes_of(outputs[0])
    assert [line["step"] for line in metrics_of(outputs[1])] == [
        2,
        *range(3, runs[0]["num_steps"] + 1),
    ]


def test_a_finished_run_is_not_changed(tmp_path: Path, data: Data, whole: Path) -> None:
    flags = data.flags(tmp_path / "out")
    assert train({**flags, "resume": True}) == 0
    (tmp_path / "out" / "scoring_model.safetensors").unlink()
    assert train({**flags, "resume": True}) == 0
    check(tmp_path / "out", whole)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(capsys: pytest.CaptureFixture[str], flags: Mapping[str, Any]) -> str:
    """Return the message of a run that ends with exit code 2 and changes no file."""
    folder = Path(flags["output_dir"])
    before = files(folder)
    capsys.readouterr()
    assert train(flags) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    assert files(folder) == before
    return message


def test_a_checkpoint_is_not_overwritten_without_a_flag(
    capsys: pytest.CaptureFixture[str], data: Data, whole: Path
) -> None:
    message = refused(capsys, data.flags(whole))
    assert f"--output_dir {whole}" in message
    assert "--resume" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("num_steps", 8),
        ("reference_lr", 1e-4),
        ("beta2", 0.99),
        ("upstream_batch_size", 16),
        ("checkpoint_every", 3),
        ("score_columns", ["clip_l14_similarity_score", "clip_b32_similarity_score"]),
        ("downstream_tasks", ["cars"]),
        ("freeze_reference", True),
        ("tangent", "exact"),
        ("num_streams", 1),
    ],
)
def test_changed_flags_are_named(
    capsys: pytest.CaptureFixture[str], data: Data, whole: Path, name: str, value: object
) -> None:
    message = refused(capsys, {**data.flags(whole), "resume": True, name: value})
    assert f"--{name} " in message
    assert str(whole / "checkpoint.pt") in message


def test_damaged_checkpoints(tmp_path: Path, whole: Path) -> None:
    """Truncated files, noise and other files give one sentence that names the file."""
    content = (whole / "checkpoint.pt").read_bytes()
    rng = random.Random(0)
    damaged = [content[: int(share * len(content))] for share in (0, 1e-6, 1e-3, 0.5, 0.9999)]
    damaged += [rng.randbytes(1000), b"{}", pickle.dumps([1]), content[len(content) // 2 :]]
    for other in ({}, [1], 5, {"step": 3}, {"step": 1, "settings": "[", "state": {}}):
        file = io.BytesIO()
        torch.save(other, file)
        damaged.append(file.getvalue())
    for index, each in enumerate(damaged):
        (tmp_path / "checkpoint.pt").write_bytes(each)
        message = refusal(load_checkpoint, tmp_path, {})
        assert str(tmp_path / "checkpoint.pt") in message, index
        assert "--output_dir" in message, index


class _Runs:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = {"step": 1, "settings": "{}", "state": _Runs(str(marker))}
    torch.save(hostile, tmp_path / "checkpoint.pt")
    assert "cannot be read" in refusal(load_checkpoint, tmp_path, {})
    assert not marker.exists()


def test_a_damaged_checkpoint_ends_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Data
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    message = refused(capsys, {**data.flags(tmp_path), "resume": True})
    assert str(tmp_path / "checkpoint.pt") in message


def test_checkpoints_are_read_as_they_were_saved(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": {"c": [1, 2.5, None]}, "d": 2.0**40}
    began = time.time()
    save_checkpoint(tmp_path, 7, {"seed": 1, "betas": (0.9, 0.98)}, state)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    actual = load_checkpoint(tmp_path, {"seed": 1, "betas": (0.9, 0.98)})
    assert actual is not None
    assert actual[0] == 7
    assert torch.equal(actual[1].pop("a"), state.pop("a"))
    assert actual[1] == state
    assert (tmp_path / "checkpoint.pt").stat().st_mtime >= began - 1
    assert load_checkpoint(tmp_path / "none", {}) is None
    message = refusal(load_checkpoint, tmp_path, {"seed": 1, "betas": (0.9, 0.98), "new": 3})
    assert "--new None, not 3" in message
