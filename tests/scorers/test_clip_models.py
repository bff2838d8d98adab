"""Checkpoints: what is read of them, and what is not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from datacomp_flyt.scorers.clip_models import read_state_dict
from tests.conftest import refusal


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch 2.6 reads NumPy scalars safely")
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_learning_rates_of_open_clip_2_are_numpy_scalars(tmp_path: Path, kind: type) -> None:
    weight = torch.arange(3.0)
    path = tmp_path / "epoch_latest.pt"
    of_group = {"lr": kind(1)}
    torch.save({"state_dict": {"module.w": weight}, "optimizer": [of_group]}, path)
    state = read_state_dict(path, "checkpoint")
    assert state.keys() == {"w"}
    assert torch.equal(state["w"], weight)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo ran > ran",)


def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "harmful.pt"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "more": Harmful()}, path)
    assert "cannot be read" in refusal(read_state_dict, path, "checkpoint")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Harmful()))  # the control: reading it without care runs it
    assert (tmp_path / "ran").exists()
