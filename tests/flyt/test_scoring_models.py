"""Scoring models against oracles, and their files read without torch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

from datacomp_flyt.flyt import scoring_models
from datacomp_flyt.flyt.scoring_models import GluHead, GluLayer, MixingModel
from datacomp_flyt.mixing import load_mixing_model
from datacomp_flyt.mixing.linear_mixing_model import mix
from datacomp_flyt.scorers import load_glu_head
from tests.conftest import PUBLISHED, refusal
from tests.oracles.e_flyt import cosine_start, glu_score
from tests.oracles.mixing import PAPER_WEIGHTS

NAMES = ("flat", "far away", "wide")
MEANS, STDS = (0.0, 1000.0, -3.0), (1e-3, 2.0, 50.0)


def raw_scores(columns: int = 3, rows: int = 50) -> Tensor:
    """Make float32 columns; the mean of the second is far larger than its deviation."""
    rng = np.random.default_rng(0)
    means = [MEANS[index % 3] for index in range(columns)]
    stds = [STDS[index % 3] for index in range(columns)]
    return torch.from_numpy(rng.normal(means, stds, (rows, columns)).astype(np.float32))


def mixing_model(standardize: bool = True, dtype: torch.dtype = torch.float64) -> MixingModel:
    torch.manual_seed(0)
    model = MixingModel(NAMES, (MEANS, STDS) if standardize else None)
    model.layers.to(dtype)
    return model


@pytest.mark.parametrize("standardize", [True, False])
def test_a_mixing_model_is_a_weighted_sum_of_standardised_columns(standardize: bool) -> None:
    model, features = mixing_model(standardize), raw_scores()
    weights, bias = model.named_weights(), model.bias.item()
    expected = [
        bias
        + math.fsum(
            weights[name] * ((value - mean) / std if standardize else value)
            for name, value, mean, std in zip(NAMES, row, MEANS, STDS, strict=True)
        )
        for row in features.tolist()
    ]
    np.testing.assert_allclose(model(features).tolist(), expected, rtol=1e-12)
    assert list(weights) == list(NAMES)


def test_columns_far_from_0_are_standardised_exactly() -> None:
    """Columns are standardised in float64, whatever the dtype of the weights."""
    model, features = mixing_model(dtype=torch.float32), raw_scores()
    expected = mixing_model()(features)
    assert model(features).dtype == torch.float32
    assert (model(features) - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("standardize", [True, False])
def test_a_saved_mixing_model_gives_the_same_scores_without_torch(
    tmp_path: Path, standardize: bool
) -> None:
    model, features = mixing_model(standardize), raw_scores()
    model.save(tmp_path / "m.safetensors")
    read = load_mixing_model(str(tmp_path / "m.safetensors"))
    assert (read.columns, read.standardize) == (NAMES, standardize)
    assert read.means == (MEANS if standardize else None)
    scores, _ = mix(read, list(features.numpy().T))
    np.testing.assert_allclose(scores, model(features).detach().numpy(), rtol=1e-10)


@pytest.mark.parametrize("wrapped", [False, True], ids=["raw", "under state_dict"])
def test_the_published_mixing_layout_keeps_the_order_of_the_columns(
    tmp_path: Path, wrapped: bool
) -> None:
    torch.manual_seed(1)
    columns = PUBLISHED[::-1]
    model = MixingModel(columns, ([0.0] * 12, [1.0] * 12))
    path = tmp_path / "mflyt.pt"
    model.save_published(path)
    state = torch.load(path, weights_only=True)
    assert {name: list(value.shape) for name, value in state.items()} == {
        "layers.0.weight": [1, 12],
        "layers.0.bias": [1],
    }
    if wrapped:
        torch.save({"epoch": 3, "state_dict": state}, path)
    read = load_mixing_model(str(path))
    assert read.columns == PUBLISHED
    assert dict(zip(read.columns, read.weights, strict=True)) == model.named_weights()
    assert read.bias == model.bias.item()

    again = MixingModel(columns, ([0.0] * 12, [1.0] * 12))
    again.load(str(path))
    assert torch.equal(again.weight, model.weight)
    assert torch.equal(again.bias, model.bias)


def test_other_columns_are_refused_in_the_published_layout(tmp_path: Path) -> None:
    message = refusal(mixing_model().save_published, tmp_path / "mflyt.pt")
    assert "mflyt.pt" in message
    assert not list(tmp_path.iterdir())


def test_a_mixing_model_starts_from_the_paper() -> None:
    model = MixingModel(PUBLISHED[3:] + PUBLISHED[:3], ([0.0] * 12, [1.0] * 12))
    model.load("paper")
    assert model.named_weights() == pytest.approx(PAPER_WEIGHTS)
    assert model.bias.item() == 0


def test_a_mixing_model_does_not_start_from_other_columns(tmp_path: Path) -> None:
    mixing_model().save(tmp_path / "m.safetensors")
    model = MixingModel(("flat", "wide"), None)
    before = model.weight.clone()
    message = refusal(model.load, str(tmp_path / "m.safetensors"))
    assert "--scoring_init" in message
    assert "far away" in message
    assert torch.equal(model.weight, before)


def test_weights_of_raw_columns_cannot_start_a_standardised_model(tmp_path: Path) -> None:
    columns, statistics = ("flat", "wide"), ([0.0, 1.0], [1.0, 2.0])
    MixingModel(columns, None).save(tmp_path / "raw.safetensors")
    MixingModel(columns, statistics).save(tmp_path / "standardised.safetensors")
    message = refusal(MixingModel(columns, statistics).load, str(tmp_path / "raw.safetensors"))
    assert "--no_standardize" in message
    assert refusal(MixingModel(columns, None).load, str(tmp_path / "standardised.safetensors"))


def embeddings(width: int, rows: int = 7) -> Tensor:
    rng = np.random.default_rng(2)
    parts = rng.normal(size=(rows, 2, width // 2))
    parts /= np.linalg.norm(parts, axis=2, keepdims=True)
    return torch.from_numpy(parts.reshape(rows, width).astype(np.float32))


def glu_head(layers: int = 1, ratio: float = 1.0) -> GluHead:
    torch.manual_seed(3)
    head = GluHead(8, ("b32_img", "b32_txt"), layers, ratio)
    with torch.no_grad():
        for param in head.parameters():
            param.mul_(4)  # makes the head far from linear
    return head


@pytest.mark.parametrize(("layers", "ratio"), [(1, 1.0), (1, 0.6), (3, 1.5)])
def test_a_glu_head_equals_the_oracle_and_the_head_without_torch(
    tmp_path: Path, layers: int, ratio: float
) -> None:
    head, features = glu_head(layers, ratio), embeddings(8)
    assert head.layers[0].w1.out_features == int(8 * ratio)
    scores = head(features).detach().numpy()
    tensors = {name: value.tolist() for name, value in head.state_dict().items()}
    expected = [glu_score(tensors, row) for row in features.tolist()]
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=1e-6)

    head.save(tmp_path / "g.safetensors")
    read = load_glu_head(tmp_path / "g.safetensors")
    assert read.arrays == ("b32_img", "b32_txt")
    np.testing.assert_allclose(read.scores(features.numpy()), scores, rtol=2e-5, atol=1e-6)

    again = GluHead(8, None, layers, ratio)
    again.load(str(tmp_path / "g.safetensors"))
    assert torch.equal(again(features), head(features))


@pytest.mark.parametrize("wrapped", [False, True], ids=["raw", "under state_dict"])
def test_the_published_head_layout_holds_the_extractor_too(tmp_path: Path, wrapped: bool) -> None:
    head, features = glu_head(), embeddings(8)
    clip = {"visual.proj": torch.ones(2, 3), "logit_scale": torch.tensor(1.0)}
    path = tmp_path / "flyt.pt"
    head.save_published(path, clip)
    state = torch.load(path, weights_only=True)
    assert {name for name in state if not name.startswith("glu_model.layers.0.")} == {
        "clip_model.visual.proj",
        "clip_model.logit_scale",
    }
    assert torch.equal(state["clip_model.visual.proj"], clip["visual.proj"])
    if wrapped:
        torch.save({"state_dict": state}, path)
    read = load_glu_head(path)
    assert read.arrays is None
    np.testing.assert_allclose(
        read.scores(features.numpy()), head(features).detach().numpy(), rtol=2e-5, atol=1e-6
    )
    again = GluHead(8)
    again.load(str(path))
    assert torch.equal(again(features), head(features))


def test_a_head_of_another_shape_is_not_loaded(tmp_path: Path) -> None:
    glu_head(ratio=0.5).save(tmp_path / "g.safetensors")
    for head in (glu_head(), glu_head(layers=2, ratio=0.5), GluHead(16)):
        before = {name: value.clone() for name, value in head.state_dict().items()}
        message = refusal(head.load, str(tmp_path / "g.safetensors"))
        assert "--glu_hidden_ratio" in message
        assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_a_missing_file_is_refused_with_the_flag(tmp_path: Path) -> None:
    for model in (mixing_model(), glu_head()):
        assert "--scoring_init" in refusal(model.load, str(tmp_path / "none.safetensors"))
    assert "--scoring_init paper" in refusal(glu_head().load, "paper")


def test_the_two_kinds_of_files_are_told_apart(tmp_path: Path) -> None:
    mixing_model().save(tmp_path / "m.safetensors")
    glu_head().save(tmp_path / "g.safetensors")
    assert "E-FLYT" in refusal(mixing_model().load, str(tmp_path / "g.safetensors"))
    assert "mixing model" in refusal(glu_head().load, str(tmp_path / "m.safetensors"))


def test_the_cosine_start_without_noise_equals_the_papers() -> None:
    """Without noise, the initial scores equal values computed by hand and by the oracle."""
    image = torch.tensor([[1, 2, 2], [2, 1, 0], [0, 3, 4], [1, 1, 1]], dtype=torch.float64)
    text = torch.tensor([[1, 2, 1], [2, 0, 1], [1, 3, 4], [1, -1, 1]], dtype=torch.float64)
    pairs = torch.cat([torch.nn.functional.normalize(part) for part in (image, text)], 1)
    layer = GluLayer(6, 6, 1).double()
    scoring_models._start_at_cosine(layer, noise=0.0)
    actual = layer(pairs)[:, 0].tolist()
    assert actual == pytest.approx([0.94865151, 0.8, 0.98361495, 0.23969502], abs=5e-9)
    tensors = cosine_start(3)
    assert actual == pytest.approx([glu_score(tensors, row) for row in pairs.tolist()], abs=1e-12)


def test_a_cosine_start_is_near_the_cosine() -> None:
    """Initial scores correlate with the cosine (about 0.91 with noise), random ones do not."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2000, 512))
    text = rng.uniform(0.0, 1.0, (2000, 1)) * image + rng.normal(size=(2000, 512))
    parts = [
        torch.from_numpy(part / np.linalg.norm(part, axis=1)[:, None]) for part in (image, text)
    ]
    cosine = (parts[0] * parts[1]).sum(1)
    features = torch.cat(parts, 1).float()

    def correlation(start: bool) -> float:
        torch.manual_seed(0)
        head = GluHead(1024, cosine_start=start)
        with torch.no_grad():
            return float(torch.corrcoef(torch.stack([cosine, head(features).double()]))[0, 1])

    assert correlation(True) > 0.85
    assert abs(correlation(False)) < 0.5


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"hidden_ratio": 0.5}])
def test_a_cosine_start_needs_one_square_layer(options: dict[str, float]) -> None:
    message = refusal(lambda: GluHead(8, cosine_start=True, **options))  # type: ignore[arg-type]
    assert "--cosine_start" in message
