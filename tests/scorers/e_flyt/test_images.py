"""E-FLYT from images: the published layout, and heads that come without an extractor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from torch import Tensor

from datacomp_flyt.scorers import GluHead
from datacomp_flyt.scorers.e_flyt.glu_head_file import save_glu_head
from datacomp_flyt.scorers.e_flyt.images import EFlytImages, make_e_flyt
from tests.conftest import refusal
from tests.flyt.tars import write_tar
from tests.oracles.e_flyt import e_flyt_score
from tests.scorers.base.image_tars import (
    checkpoint,
    features_one_by_one,
    sample,
    score,
    scorer_of,
    small_model,
    small_weights,
)
from tests.scorers.base.made import listed, made_head

ROWS = 9
WIDTH = 32  # two features of `small_model`


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [sample(number) for number in range(ROWS)]
    return write_tar(tmp_path_factory.mktemp("tars") / "00000000.tar", rows)


@pytest.fixture(scope="module")
def features(model: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = [sample(number) for number in range(ROWS)]
    return features_one_by_one(model, small_weights(model), rows)


def one_by_one(head: GluHead, features: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    weights = listed(head)
    return np.array([e_flyt_score(weights, img, txt) for img, txt in zip(*features, strict=True)])


def published(path: Path, head: GluHead, clip: dict[str, Tensor], nested: bool = False) -> Path:
    """Save a checkpoint in the layout of the published `flyt.pt`."""
    state = {name: torch.from_numpy(value) for name, value in head.tensors("glu_model.").items()}
    state |= {f"clip_model.{name}": value for name, value in clip.items()}
    torch.save({"state_dict": state} if nested else state, path)
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_published_layout(
    tmp_path: Path,
    model: Path,
    tar: Path,
    features: tuple[np.ndarray, np.ndarray],
    layers: int,
    nested: bool,
) -> None:
    head = made_head(WIDTH, 24, layers, arrays=None)
    path = published(tmp_path / "flyt.pt", head, small_weights(model), nested)
    scorer = scorer_of(EFlytImages, "--scoring_model", path, "--model", model, "--batch_size", 4)
    found = score(scorer, tar)
    wanted = one_by_one(head, features)
    assert scorer.columns == ("FLYT",)
    assert found.values.shape == (ROWS, 1)
    assert np.abs(found.values[:, 0] - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.ptp(wanted) > 0.01 * np.abs(wanted).max()


def test_bfloat16_is_near(
    tmp_path: Path, model: Path, tar: Path, features: tuple[np.ndarray, np.ndarray]
) -> None:
    """The head is computed in float32: 1.5-sized weights would lose more than the features do."""
    head = made_head(WIDTH, 24, arrays=None)
    path = published(tmp_path / "flyt.pt", head, small_weights(model))
    words = ("--scoring_model", path, "--model", model)
    found = score(scorer_of(EFlytImages, *words, precision="bf16"), tar).values[:, 0]
    wanted = one_by_one(head, features)
    assert 1e-5 < np.abs(found - wanted).max() / np.abs(wanted).max() < 0.1


def test_the_head_leaves_autocast(model: Path, tmp_path: Path) -> None:
    head = made_head(WIDTH, 24, arrays=None)
    path = published(tmp_path / "flyt.pt", head, small_weights(model))
    scorer = scorer_of(EFlytImages, "--scoring_model", path, "--model", model)
    scorer.load("cpu")
    images, texts = torch.randn(3, 3, 32, 32), scorer.tokenize(["a cat", "a dog", "a bus"])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = scorer.score_batch(images, texts)
        features = torch.cat(scorer._encoder.features(images, texts), 1)
    assert np.allclose(found[:, 0], head.scores(features.numpy()), rtol=1e-5, atol=1e-5)


def test_a_head_of_ours_with_an_extractor_beside_it(
    tmp_path: Path, model: Path, tar: Path, features: tuple[np.ndarray, np.ndarray]
) -> None:
    head = made_head(WIDTH, 24, arrays=None)
    save_glu_head(head, tmp_path / "head.safetensors")
    words = ("--scoring_model", tmp_path / "head.safetensors", "--model", model)
    message = refusal(scorer_of, EFlytImages, *words)
    assert "head.safetensors" in message
    assert "--checkpoint" in message
    clip = checkpoint(tmp_path / "extractor.pt", small_weights(model))
    found = score(scorer_of(EFlytImages, *words, "--checkpoint", clip), tar)
    wanted = one_by_one(head, features)
    assert np.abs(found.values[:, 0] - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_another_extractor_than_the_one_in_the_file(tmp_path: Path, model: Path, tar: Path) -> None:
    head = made_head(WIDTH, 24, arrays=None)
    other = small_weights(model, seed=9)
    path = published(tmp_path / "flyt.pt", head, small_weights(model))
    words = ("--scoring_model", path, "--model", model)
    given = checkpoint(tmp_path / "c.pt", other)
    scorer = scorer_of(EFlytImages, *words, "--checkpoint", given)
    rows = [sample(number) for number in range(ROWS)]
    wanted = one_by_one(head, features_one_by_one(model, other, rows))
    assert np.abs(score(scorer, tar).values[:, 0] - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert scorer.settings != scorer_of(EFlytImages, *words).settings


def test_wrong_files(tmp_path: Path, model: Path) -> None:
    clip = small_weights(model)
    head = made_head(WIDTH, 24, arrays=None)
    assert "wants --scoring_model" in refusal(make_e_flyt, None)

    path = tmp_path / "head.pt"
    published(path, head, {})
    message = refusal(scorer_of, EFlytImages, "--scoring_model", path, "--model", model)
    assert f"--scoring_model {path}" in message
    assert "--checkpoint" in message

    save_glu_head(made_head(WIDTH), tmp_path / "npz.safetensors")
    message = refusal(scorer_of, EFlytImages, "--scoring_model", tmp_path / "npz.safetensors")
    assert "npz.safetensors" in message
    assert "b32_img" in message

    path = published(tmp_path / "flyt.pt", head, clip)
    message = refusal(scorer_of, EFlytImages, "--scoring_model", path, "--model", "flyt-tiny")
    assert f"--scoring_model {path}" in message
    assert "flyt-tiny" in message

    path = published(tmp_path / "narrow.pt", made_head(12, 7, arrays=None), clip)
    message = refusal(scorer_of, EFlytImages, "--scoring_model", path, "--model", model)
    assert f"--scoring_model {path} takes 12 features" in message
    assert "2 x 16" in message

    message = refusal(scorer_of, EFlytImages, "--scoring_model", tmp_path / "none.pt")
    assert str(tmp_path / "none.pt") in message
