"""The scoring head against one hidden unit at a time."""

from __future__ import annotations

import numpy as np
import pytest

from datacomp_flyt.scorers import GluHead
from tests.conftest import refusal
from tests.oracles import e_flyt
from tests.scorers.base.made import glu_bound, listed, made_head


def unit(rows: list[list[int]]) -> np.ndarray:
    values = np.array(rows, np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def features(rows: int, width: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def test_cosine_start_gives_four_values_computed_by_hand() -> None:
    f = unit([[1, 2, 2], [2, 1, 0], [0, 3, 4], [1, 1, 1]])
    g = unit([[1, 2, 1], [2, 0, 1], [1, 3, 4], [1, -1, 1]])
    start = e_flyt.cosine_start(3)
    expected = [0.94865151, 0.8, 0.98361495, 0.23969502]
    oracle = [e_flyt.e_flyt_score(start, i.tolist(), t.tolist()) for i, t in zip(f, g, strict=True)]
    assert oracle == pytest.approx(expected, abs=1e-8)
    tensors = {name: np.array(values) for name, values in start.items()}
    head = GluHead.from_tensors(tensors, ("b32_img", "b32_txt"), "the start")
    scores = head.scores(np.concatenate([f, g], 1).astype(np.float32))
    assert scores.dtype == np.float32
    rows = np.concatenate([f, g], 1).astype(np.float32)
    assert scores == pytest.approx(expected, rel=0, abs=glu_bound(head, rows) + 5e-9)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("width", "hidden"), [(8, 7), (6, 64), (10, 150), (2, 1)])
def test_scores_are_those_of_the_loop(width: int, hidden: int, layers: int) -> None:
    head = made_head(width, hidden, layers)
    z = features(13, width)
    wanted = [e_flyt.glu_score(listed(head), row) for row in z.astype(np.float64).tolist()]
    scores = head.scores(z)
    assert scores.shape == (13,)
    bound = glu_bound(head, z)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=bound)
    assert np.std(wanted) > 100 * bound


@pytest.mark.parametrize("rows", [0, 1, 511, 512, 513, 1100])
def test_a_score_does_not_depend_on_the_other_rows(rows: int) -> None:
    head = made_head(8, 70)
    z = features(1100, 8)
    scores = head.scores(z)
    assert head.scores(z[:rows]).tobytes() == scores[:rows].tobytes()
    order = np.random.default_rng(0).permutation(1100)
    bound = glu_bound(head, z, computed=2)
    np.testing.assert_allclose(head.scores(z[order]), scores[order], rtol=0, atol=bound)
    assert np.unique(scores).size > 1000, "all alike: nothing is tested"


def test_at_the_width_of_clip_too() -> None:
    head = made_head(1024, 1024)
    z = features(600, 1024) / 32
    scores = head.scores(z)
    order = np.random.default_rng(0).permutation(600)
    bound = glu_bound(head, z)
    assert scores.std() > 100 * bound
    np.testing.assert_allclose(head.scores(z[order]), scores[order], rtol=0, atol=2 * bound)
    tensors = {name: tensor.astype(np.float64) for name, tensor in head.tensors().items()}
    gate = z @ tensors["layers.0.w1.weight"].T + tensors["layers.0.w1.bias"]
    value = z @ tensors["layers.0.w3.weight"].T + tensors["layers.0.w3.bias"]
    hidden = gate / (1 + np.exp(-gate)) * value
    wanted = hidden @ tensors["layers.0.w2.weight"][0] + tensors["layers.0.w2.bias"]
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=bound)


def test_saturated_gates_are_zero_or_open_and_nan_stays_in_its_row() -> None:
    head = made_head(2, 3)
    z = features(5, 2)
    z[1] = (3e4, -3e4)
    z[3] = np.nan
    scores = head.scores(z)
    wanted = [e_flyt.glu_score(listed(head), row) for row in z[[0, 1, 2, 4]].tolist()]
    assert np.isnan(scores[3])
    np.testing.assert_allclose(scores[[0, 1, 2, 4]], wanted, rtol=1e-4)


# ------------------------------------------------------------------------ weights at fault


def spoilt(name: str, values: object | None) -> str:
    tensors: dict[str, np.ndarray] = dict(made_head(6, 5, layers=2).tensors())
    if values is None:
        del tensors[name]
    else:
        tensors[name] = np.asarray(values)
    return refusal(GluHead.from_tensors, tensors, None, "head.pt")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("layers.0.w1.weight", None, "no layers.0.w1.weight"),
        ("layers.0.w3.bias", None, "no layers.0.w3.bias"),
        ("layers.1.w2.bias", None, "no layers.1.w2.bias"),
        ("layers.0.w1.weight", np.zeros((5, 6, 1)), "layers.0.w1.weight [5, 6, 1]"),
        ("layers.0.w1.weight", np.zeros((0, 6)), "layers.0.w1.weight [0, 6]"),
        ("layers.0.w1.bias", np.zeros(6), "layers.0.w1.bias [6]"),
        ("layers.0.w3.weight", np.zeros((5, 7)), "wanted [5, 6]"),
        ("layers.0.w2.weight", np.zeros((6, 4)), "wanted [6, 5]"),
        ("layers.1.w1.weight", np.zeros((5, 8)), "wanted [5, 6]"),
        ("layers.1.w3.bias", np.zeros(()), "layers.1.w3.bias []"),
        ("layers.3.w1.weight", np.zeros((5, 6)), "has layers.3.w1.weight too"),
        ("optimizer", np.zeros(1), "has optimizer too"),
        ("layers.0.w1.bias", np.array([0, 0, np.nan, 0, 0]), "in layers.0.w1.bias that are no"),
        ("layers.0.w1.bias", np.array([0, 0, 1e300, 0, 0]), "in layers.0.w1.bias that are no"),
        ("layers.0.w1.bias", np.zeros(5, np.int64), "in layers.0.w1.bias that are no"),
    ],
)  # fmt: skip
def test_weights_that_make_no_head(name: str, values: object | None, said: str) -> None:
    message = spoilt(name, values)
    assert said in message
    assert "head.pt" in message


def test_a_last_layer_of_several_outputs() -> None:
    tensors: dict[str, np.ndarray] = dict(made_head(6, 5).tensors())
    tensors["layers.0.w2.weight"], tensors["layers.0.w2.bias"] = np.zeros((2, 5)), np.zeros(2)
    assert "wanted [1, 5]" in refusal(GluHead.from_tensors, tensors, None, "head.pt")


def test_no_tensors() -> None:
    message = refusal(GluHead.from_tensors, {}, None, "head.pt")
    assert message == "head.pt has no layers.0.w1.weight: it is not a scoring head of E-FLYT"
