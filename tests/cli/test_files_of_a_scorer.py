"""The single files that a scorer reads stay the same while it scores, as the pool does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from datacomp_flyt.demo import POOL
from datacomp_flyt.scorers.base import score as scoring
from datacomp_flyt.scorers.linear_classifier.classifier_file import LinearModel, save_classifier
from datacomp_flyt.scorers.linear_classifier.linear_classifier import LinearClassifier
from tests.cli.commands import run
from tests.engines.here import Here
from tests.files.replacements import REPLACE


def model(path: Path, bias: float) -> bytes:
    save_classifier(LinearModel(np.ones(32), bias, ("b32_img",)), path)
    return path.read_bytes()


@pytest.mark.parametrize("replace", REPLACE)
def test_a_classifier_that_is_replaced(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    replace: Callable[[Path, bytes], None],
) -> None:
    """A worker that starts later would score by another model than the settings name."""
    other = model(tmp_path / "other.safetensors", 0.25)
    path = tmp_path / "models" / "c.safetensors"
    path.parent.mkdir()
    model(path, 0.5)
    real, scored = LinearClassifier.score, list[Any]()

    def replacing(self: Any, shard: Any, state: Any) -> Any:
        if len(scored) == 2:
            assert len(other) == path.stat().st_size
            replace(path, other)
        scored.append(shard)
        return real(self, shard, state)

    monkeypatch.setattr(scoring, "make_engine", lambda *_, **__: Here())
    monkeypatch.setattr(LinearClassifier, "score", replacing)
    words = ["score", "--scorer", "linear_classifier", "--classifier", path, "--column", "c"]
    words += ["--metadata_dir", POOL / "metadata", "--scores_dir", tmp_path / "scores"]
    code, _, said = run(capsys, *words)
    assert code == 2
    assert f"{path} has changed since this run began" in said
    made = sorted(name for name in os.listdir(tmp_path / "scores" / "c") if name[0] not in "._")
    assert len(made) == 2
