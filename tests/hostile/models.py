"""Readers of models, target sets and training rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile import valid
from tests.hostile.reader import Check, Reader


def _mixing(name: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from datacomp_flyt.mixing.m_flyt import load_mixing_model

        model = load_mixing_model(str(folder / name))
        return [
            model.columns,
            model.weights,
            model.bias,
            model.standardize,
            model.means,
            model.stds,
        ]

    return call


def _check_mixing(result: Any) -> str | None:
    columns, weights, bias, _, means, stds = result
    numbers = [*weights, bias, *(means or ()), *(stds or ())]
    if not columns or len(columns) != len(weights) or not np.isfinite(numbers).all():
        return "no model"
    return "a column twice" if len(set(columns)) != len(columns) else None


def _glu(name: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head

        head = load_glu_head(folder / name)
        tensors = head.tensors()
        return [
            head.arrays,
            *tensors,
            *tensors.values(),
            head.scores(np.ones((2, head.width), "f4")),
        ]

    return call


def _check_finite(result: Any) -> str | None:
    arrays = [part for part in result if isinstance(part, np.ndarray)]
    return None if all(np.isfinite(array).all() for array in arrays[:-1]) else "not finite"


def _classifier(name: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from datacomp_flyt.scorers.linear_classifier.classifier_file import load_classifier

        model = load_classifier(folder / name)
        return [model.arrays, model.weight, np.array(model.bias), np.array(0)]

    return call


def _reference(name: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from datacomp_flyt.scorers.hype.model import load_reference

        return [*(t.numpy() for t in load_reference(folder / name, "reference", 3)), np.array(0)]

    return call


def _checkpoint(folder: Path) -> Any:
    from datacomp_flyt.flyt.checkpoint import load_checkpoint

    return repr(load_checkpoint(folder, {"batch_size": 4}))


def _compared(result: Any) -> str | None:
    """Accept any result: `Reader.exact` compares it."""
    return None


def _targets(name: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from datacomp_flyt.scorers.base.targets import load_targets

        return load_targets([str(folder / name)], "b32_img")

    return call


def _check_targets(result: Any) -> str | None:
    lengths = np.linalg.norm(result.astype(np.float64), axis=1)
    return (
        None
        if len(result) and (abs(lengths - 1) < 0.02).all()
        else "targets that are not of unit norm"
    )


def _rows(name: str) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        from datacomp_flyt.scorers.linear_classifier.training_rows import (
            RandomRows,
            find_embeddings,
        )

        files = find_embeddings([str(folder / name)], ["b32_img"], "--positives")
        rows = RandomRows(files, np.random.default_rng(0), 8, "--positives", renormalize=True)
        return rows.draw(4).astype(np.float32)

    return call


def _check_rows(result: Any) -> str | None:
    return None if len(result) == 4 and np.isfinite(result).all() else "rows that are not finite"


MODEL_READERS: dict[str, Reader] = {
    "checkpoint": Reader(valid.checkpoint, "checkpoint.pt", _checkpoint, _compared, exact=True)
}
_MODELS: dict[str, tuple[Callable[[str], Callable[[Path], Any]], Check]] = {
    "mixing": (_mixing, _check_mixing),
    "glu": (_glu, _check_finite),
    "classifier": (_classifier, _check_finite),
    "reference": (_reference, _check_finite),
}
for _name, _kind in (("model.safetensors", "safetensors"), ("model.pt", "zip")):
    for _what, (_call, _check) in _MODELS.items():
        _make = valid.model(_what, _name)
        MODEL_READERS[f"{_what} {_kind}"] = Reader(
            _make, _name, _call(_name), _check, _kind == "zip"
        )
for _name, _kind in (
    ("t.npy", "npy"),
    ("t.npz", "zip"),
    ("t.pt", "zip"),
    ("t.safetensors", "safetensors"),
):
    _make = valid.targets(_name)
    MODEL_READERS[f"targets {_name}"] = Reader(
        _make, _name, _targets(_name), _check_targets, _kind == "zip"
    )
    if _name in ("t.npy", "t.npz"):
        MODEL_READERS[f"rows {_name}"] = Reader(
            _make, _name, _rows(_name), _check_rows, _kind == "zip"
        )
