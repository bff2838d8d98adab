"""Training does not depend on the number of processes and of loader workers.

Matrix products are rounded differently for other numbers of rows, and AdamW amplifies the rounding
of the smallest gradients to whole steps. Therefore the tests compare runs in float64, or in float32
with SGD.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from tests.conftest import REPOSITORY
from tests.flyt.runs import (
    Data,
    argv,
    bytes_of,
    make_data,
    metrics_of,
    rank_log,
    start,
    tensors_of,
    train,
    train_in_double,
    train_on_ranks,
)

STEPS = {"num_steps": 20, "checkpoint_every": 10, "warmup": 5, "num_streams": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "M-FLYT": ("scores", {"downstream_loss": "cross_entropy"}),
    "M-FLYT, temperature": ("scores", {"downstream_loss": "cross_entropy_temperature"}),
    "M-FLYT, CLIP loss": ("scores", {"downstream_loss": "clip"}),
    "E-FLYT": ("embeddings", {"downstream_loss": "cross_entropy"}),
    "E-FLYT, CLIP loss": ("embeddings", {"downstream_loss": "clip"}),
    "two tasks": ("scores", {"downstream_tasks": ["pets", "cars"], "task_weights": "balanced"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


def difference(one: Path, other: Path) -> float:
    """Return the largest absolute difference of all tensors."""
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def compare_in_double(folder: Path, data: Data, case: str, world_size: int, **fewer: int) -> None:
    features, changes = CASES[case]
    changes = {**changes, **fewer}
    outputs = folder / "one", folder / "several"
    runs = [{**data.flags(o, features), **STEPS, "tangent": "exact", **changes} for o in outputs]
    process = start(train_in_double, runs[0])
    process.join(120)
    assert process.exitcode == 0
    assert train_on_ranks(runs[1], world_size, in_double=True) == [0] * world_size
    assert tensors_of(outputs[1])["reference_model/visual.proj"].dtype == torch.float64
    # the file of E-FLYT is float32
    assert difference(*outputs) < (1e-6 if features == "embeddings" else 1e-10)
    for actual, expected in zip(*map(metrics_of, reversed(outputs)), strict=True):
        for name in ("upstream_loss", "downstream_loss", "weight_entropy"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-5)
    # only rank 0 prints
    assert not rank_log(outputs[1], 1).read_text()


@pytest.mark.parametrize("case", ["E-FLYT, CLIP loss"])
def test_two_processes_equal_one(tmp_path: Path, data: Data, case: str) -> None:
    compare_in_double(tmp_path, data, case, 2, num_steps=6, checkpoint_every=3)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_equal_one(
    tmp_path: Path, data: Data, case: str, world_size: int
) -> None:
    compare_in_double(tmp_path, data, case, world_size)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_torchrun_equals_one_process(tmp_path: Path, data: Data, world_size: int) -> None:
    """The models agree within 1e-5 after 20 steps in float32 with SGD."""
    outputs = tmp_path / "one", tmp_path / "several"
    runs = [
        {
            **data.flags(output),
            **STEPS,
            "tangent": "exact",
            "optimizer": "sgd",
            "reference_lr": 0.01,
            "scoring_lr": 1e-3,
        }
        for output in outputs
    ]
    assert train(runs[0]) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "datacomp_flyt.flyt.train", *argv(runs[1])],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert difference(*outputs) < 1e-5


def test_several_processes_resume(tmp_path: Path, data: Data) -> None:
    outputs = tmp_path / "whole", tmp_path / "killed"
    whole, killed = ({**data.flags(output), "num_steps": 10} for output in outputs)
    assert train_on_ranks(whole, 2) == [0, 0]
    checkpoint = outputs[1] / "checkpoint.pt"
    assert train_on_ranks(killed, 2, kill_when=checkpoint.exists) == [-signal.SIGKILL] * 2
    assert not (outputs[1] / "scoring_model.safetensors").exists()
    assert train_on_ranks({**killed, "resume": True}, 2) == [0, 0]
    assert bytes_of(outputs[1]) == bytes_of(outputs[0])
    assert [line["step"] for line in metrics_of(outputs[1])] == list(range(1, 11))


def test_workers_change_nothing(tmp_path: Path, data: Data) -> None:
    outputs = tmp_path / "none", tmp_path / "two"
    flags = {**data.flags(outputs[0]), "num_streams": 4, "num_steps": 4}
    assert train(flags) == 0
    assert train({**flags, "output_dir": outputs[1], "num_workers": 2}) == 0
    assert bytes_of(outputs[1]) == bytes_of(outputs[0])


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"upstream_batch_size": 9, "num_streams": 3}, "--upstream_batch_size 9"),
        ({"num_streams": 1}, "--num_streams 1"),
    ],
)
def test_a_world_size_that_does_not_divide(
    tmp_path: Path, data: Data, changes: dict[str, Any], flag: str
) -> None:
    output = tmp_path / "out"
    assert train_on_ranks({**data.flags(output), **changes}, 2) == [2, 2]
    for rank in range(2):
        (line,) = rank_log(output, rank).read_text().splitlines()
        assert flag in line
        assert "2 processes" in line
    assert not output.exists()
