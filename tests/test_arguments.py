"""Arguments that functions of several commands check alike."""

from __future__ import annotations

from pathlib import Path

import pytest

import datacomp_flyt as flyt
from tests.conftest import refusal

TRAINING = {"preset": "tiny", "train_data": "t", "downstream_dir": "d", "output_dir": "o"}
CLASSIFIER = {"positives": ["p"], "negatives": ["n"], "out": "o.safetensors"}


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        ("train", {**TRAINING, "score_columns": "FLYT"}, "--score_columns is 'FLYT'"),
        ("train", {**TRAINING, "report_to": "wandb"}, "--report_to is 'wandb'"),
        ("train_classifier", {**CLASSIFIER, "positives": "npz"}, "--positives is 'npz'"),
        ("train_classifier", {**CLASSIFIER, "arrays": "b32_img"}, "--arrays is 'b32_img'"),
        ("write_report", {"metadata_dir": "m", "subsets": "s.npy"}, "--subset is 's.npy'"),
        ("check_parts", {"subset": "s.npy", "parts": Path("part")}, "the list of parts is 'part'"),
    ],
)
def test_a_text_in_place_of_a_list(
    tmp_path: Path, function: str, options: dict[str, object], words: str
) -> None:
    if function in ("train", "train_classifier"):
        pytest.importorskip("open_clip")
    paths = (tmp_path,) if function == "write_report" else ()
    message = refusal(getattr(flyt, function), *paths, **options)
    assert message.startswith(f"{words}, wanted a list: [")
