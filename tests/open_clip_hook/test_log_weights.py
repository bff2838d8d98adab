"""Tables of weights and scores: accepted and refused ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")
from torch import Tensor
from torchvision.transforms import Compose, Normalize

from datacomp_flyt.clip.encoder import ClipEncoder
from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.log_weights import (
    LogWeights,
    ScoringModelWeights,
    read_scores,
    read_weights,
)
from datacomp_flyt.scorers.e_flyt.glu_head_file import save_glu_head
from tests.flyt.tars import uid_of
from tests.open_clip_hook.made import uids_of, write_table
from tests.oracles.e_flyt import e_flyt_score
from tests.scorers.base.image_tars import small_model, small_weights
from tests.scorers.base.made import listed, made_head

UNUSED = torch.zeros(0)  # images and texts, which tables do not use


def logs(weights: LogWeights, numbers: Sequence[int]) -> Tensor:
    return weights(uids_of(numbers), UNUSED, UNUSED)


def test_weights_by_uid(tmp_path: Path) -> None:
    path = write_table(tmp_path / "w.parquet", {"uid": [1, 2, 3], "w": [0.5, 0.0, 8.0]})
    weights = read_weights(path, None, None)
    log_weights = logs(weights, [3, 2, 1, 3])
    torch.testing.assert_close(log_weights, torch.tensor([8.0, 0.0, 0.5, 8.0]).log())
    assert log_weights.dtype == torch.float32


def test_scores_are_log_weights(tmp_path: Path) -> None:
    path = write_table(tmp_path / "s.parquet", {"uid": [1, 2], "s": [-3.5, 700.0]})
    assert logs(read_scores(path, None, None), [2, 1]).tolist() == [700.0, -3.5]


def test_a_folder_and_a_column_of_several(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"uid": [1], "x": [5.0], "name": ["a"]})
    (tmp_path / "sub").mkdir()
    write_table(tmp_path / "sub" / "b.parquet", {"uid": [2], "x": [6.0], "y": [9]})
    assert logs(read_scores(tmp_path, "x", None), [2, 1]).tolist() == [6.0, 5.0]
    assert logs(read_scores(tmp_path, "y", None), [2]).tolist() == [9.0]


def test_examples_that_are_not_in_the_table(tmp_path: Path) -> None:
    path = write_table(tmp_path / "w.parquet", {"uid": [1, 2], "w": [1.0, 2.0]})
    assert logs(read_weights(path, None, 4.0), [7, 2])[0].item() == pytest.approx(math.log(4))
    assert logs(read_weights(path, None, 0.0), [7])[0].item() == -math.inf
    assert logs(read_scores(path, None, -1.5), [7])[0].item() == -1.5
    refusing = read_weights(path, None, None)
    with pytest.raises(
        InputError, match=r"lacks 2 of the 4 examples of a batch \(50.0%; the first"
    ):
        logs(refusing, [1, 7, 2, 8])
    message = f"lacks 1 of the first 3 examples of 0.tar .* is {uid_of(9)}.*--missing_value"
    with pytest.raises(InputError, match=message):
        refusing.check([uid_of(1), uid_of(2), uid_of(9)], "0.tar")


@pytest.mark.parametrize(
    ("columns", "column", "missing", "message"),
    [
        ({"uid": [1, 2], "w": [1.0, -2.0]}, None, None, f"1 weights below 0 .*{uid_of(2)}"),
        ({"uid": [1, 2], "w": [1.0, math.nan]}, None, None, f"1 values of 'w' .*{uid_of(2)}"),
        ({"uid": [1, 2], "w": [math.inf, 1.0]}, None, None, f"1 values of 'w' .*{uid_of(1)}"),
        ({"uid": [1, 2], "w": [None, 1.0]}, None, None, f"1 values of 'w' .*{uid_of(1)}"),
        ({"uid": [1, 2], "w": [0.0, 0.0]}, None, None, "is 0 for every example"),
        ({"uid": [1, 1], "w": [1.0, 2.0]}, None, None, "more than one 'w'"),
        ({"uid": [1, "zz"], "w": [1.0, 2.0]}, None, None, "row 1 has uid 'zz'"),
        ({"uid": [1], "w": [1.0], "v": [1.0]}, None, None, "has several columns .*w, v.*--column"),
        ({"uid": [1], "w": [1.0]}, "v", None, "has no column 'v'"),
        ({"uid": [1], "w": ["a"]}, None, None, "has no column of numbers"),
        ({"uid": [1], "w": [1.0]}, None, -1.0, "is -1.0, wanted a finite number, 0 or more"),
        ({"uid": [1], "w": [1.0]}, None, math.inf, "is inf, wanted a finite number"),
        ({"uid": [1], "w": [1.0]}, None, math.nan, "--missing_value is nan"),
    ],
)
def test_bad_tables(
    columns: dict[str, list[object]],
    column: str | None,
    missing: float | None,
    message: str,
    tmp_path: Path,
) -> None:
    path = write_table(tmp_path / "w.parquet", columns)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(path, column, missing)
    assert "\n" not in str(caught.value)


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--weights .*w.parquet is not there"):
        read_weights(tmp_path / "w.parquet", None, None)
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_scores(tmp_path / "x.parquet", None, None)
    with pytest.raises(InputError, match="--missing_value is inf, wanted a finite number"):
        read_scores(tmp_path / "x.parquet", None, math.inf)


def test_equal_weights() -> None:
    LogWeights().check([uid_of(1)], "0.tar")
    assert logs(LogWeights(), [1, 2]).tolist() == [0.0, 0.0]


def test_a_scoring_model_scores_the_batch(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    head, clip = tmp_path / "head.safetensors", tmp_path / "clip.pt"
    save_glu_head(made_head(32, 24, 1, arrays=None), head)
    torch.save(small_weights(model), clip)
    weights = ScoringModelWeights(str(head), str(model), str(clip))
    encoder = ClipEncoder(str(model), str(clip)).load("cpu")
    weights.load("cpu", encoder.tokenize, encoder.transform)
    weights.check([uid_of(1)], "0.tar")
    images = torch.randn(5, 3, 32, 32)
    texts = encoder.tokenize(["a", "b", "c d", "e", ""])
    actual = weights(uids_of(range(5)), images, texts)
    features = [part.numpy() for part in encoder.features(images, texts)]
    layers = listed(made_head(32, 24, 1, arrays=None))
    expected = [e_flyt_score(layers, *pair) for pair in zip(*features, strict=True)]
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-5)

    with pytest.raises(InputError, match=r"head.safetensors takes images of .* makes \(8, 8\)"):
        weights(uids_of(range(5)), torch.randn(5, 3, 8, 8), texts)
    with pytest.raises(InputError, match="uses another tokenizer or another context length"):
        weights.load("cpu", lambda texts: encoder.tokenize(texts) + 1, encoder.transform)
    with pytest.raises(InputError, match="another tokenizer or another context length"):
        weights.load("cpu", lambda texts: encoder.tokenize(texts)[:, :9], encoder.transform)
    halves = Compose([Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    with pytest.raises(InputError, match=r"mean and std \(\(0.48.* makes \(\(0.5, 0.5, 0.5\)"):
        weights.load("cpu", encoder.tokenize, halves)
