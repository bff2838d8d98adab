"""Mixing against the oracle, the statistics of columns, and saved models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from datacomp_flyt.mixing import (
    LinearMixingModel,
    in_weighted_sum,
    load_mixing_model,
    mix,
    plain_sum,
    save_mixing_model,
    standardized_sum,
)
from datacomp_flyt.mixing.standardization import mean_and_std
from tests.conftest import PUBLISHED, refusal
from tests.oracles import mixing as oracle

BLOCK = 1 << 16
NAMES = ("a", "b", "c")
RNG = np.random.default_rng(11)
COLUMNS = {
    name: RNG.normal(index - 4, 0.1 + 5 * index, 300) for index, name in enumerate(PUBLISHED)
}


def mixed(model: LinearMixingModel, columns: dict[str, np.ndarray], workers: int = 1) -> np.ndarray:
    return mix(model, (columns[name] for name in model.columns), workers)[0]


# -------------------------------------------------------------------------------- values


PAPER = load_mixing_model("paper")
WITH_BIAS = LinearMixingModel(PUBLISHED, tuple(oracle.PAPER_WEIGHTS.values()), bias=-2.5)
Oracle = Callable[[oracle.Columns], list[float]]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (PAPER, lambda columns: oracle.m_flyt(columns, oracle.PAPER_WEIGHTS)),
        (WITH_BIAS, lambda columns: oracle.m_flyt(columns, oracle.PAPER_WEIGHTS, -2.5)),
        (plain_sum(), oracle.plain_sum),
        (standardized_sum(), oracle.standardized_sum),
        *(
            (
                in_weighted_sum(ratio),
                lambda columns, ratio=ratio: oracle.in_weighted_sum(
                    columns, oracle.PAPER_IMAGENET_ACCURACIES, ratio
                ),
            )
            for ratio in (1.25, 2.0, 8.0, 16.0)
        ),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_mix_equals_the_oracle(
    model: LinearMixingModel, expected: Oracle, dtype: type[np.floating]
) -> None:
    columns = {name: values.astype(dtype) for name, values in COLUMNS.items()}
    scores = mixed(model, columns)
    assert scores.dtype == np.float64
    plain = {name: values.tolist() for name, values in columns.items()}
    assert scores == pytest.approx(expected(plain), rel=1e-12, abs=1e-12)


def test_the_published_weights() -> None:
    assert PAPER.columns == PUBLISHED == standardized_sum().columns == plain_sum().columns
    assert dict(zip(PAPER.columns, PAPER.weights, strict=True)) == oracle.PAPER_WEIGHTS
    assert (PAPER.bias, PAPER.standardize, PAPER.means) == (0.0, True, None)
    assert set(plain_sum().weights) == set(standardized_sum().weights) == {1.0}


def test_imagenet_weights_of_the_paper() -> None:
    """The weights of appendix C.5 for ratio 2 and the accuracies of Table 2."""
    model = in_weighted_sum(2.0)
    weights = dict(zip(model.columns, model.weights, strict=True))
    order = [
        *("vit-b-32", "vit-l-14", "DFN-Base", "DFN-FT"),
        *("hype_lorentzian_distance", "hype_image_specificity", "hype_text_specificity"),
        *("negCLIPLoss", "normsim_inf", "IN1K-Classifier", "CC2M-Classifier", "FLYT"),
    ]
    expected = [1.2, 1, 1.4, 2, 1.56, 1.56, 1.56, 1.8533, 1.8533, 1.0133, 1.2667, 1.6533]
    assert [weights[name] for name in order] == pytest.approx(expected, abs=5e-5)
    assert len(weights) == 12


@given(
    st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=2, max_size=9).filter(
        lambda accuracies: max(accuracies.values()) - min(accuracies.values()) > 1e-6
    ),
    st.floats(1.01, 100),
)
def test_imagenet_weights_have_the_given_ratio(accuracies: dict[str, float], ratio: float) -> None:
    model = in_weighted_sum(ratio, accuracies)
    expected = oracle.in_weighted_weights(accuracies, ratio)
    assert dict(zip(model.columns, model.weights, strict=True)) == pytest.approx(expected)
    assert max(model.weights) / min(model.weights) == pytest.approx(ratio, rel=1e-9)


# ---------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("num_rows", [2, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_statistics_are_exact_and_the_same_for_any_workers(
    num_rows: int, dtype: type[np.floating]
) -> None:
    values = (np.random.default_rng(num_rows).normal(100, 3, num_rows)).astype(dtype)
    actual = mean_and_std(values, "a")
    assert actual == mean_and_std(values, "a", 2) == mean_and_std(values, "a", 7)
    mean = math.fsum(values.tolist()) / num_rows
    squares = math.fsum((value - mean) ** 2 for value in values.tolist())
    assert actual == pytest.approx((mean, math.sqrt(squares / num_rows)), rel=1e-12)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_statistics_leave_out_values_that_are_not_finite(wrong: float) -> None:
    values = RNG.normal(2, 3, BLOCK + 500)
    holes = values.copy()
    rows = RNG.choice(len(values), 200, replace=False)
    holes[rows] = wrong
    kept = np.delete(values, rows)
    assert mean_and_std(holes, "a") == pytest.approx((kept.mean(), kept.std()), rel=1e-12)
    assert mean_and_std(holes[:BLOCK], "a", 2) == mean_and_std(holes[:BLOCK], "a")


def test_examples_without_a_score_get_none_and_affect_no_other() -> None:
    columns = {name: COLUMNS[name].copy() for name in PUBLISHED}
    columns["FLYT"][[3, 77]] = np.nan
    columns["DFN-FT"][[77, 100]] = np.nan
    scores, model = mix(PAPER, [columns[name] for name in PUBLISHED])
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 77, 100]

    means, stds = dict(zip(PUBLISHED, model.means or ())), dict(zip(PUBLISHED, model.stds or ()))  # noqa: B905
    for name, values in columns.items():
        kept = np.delete(values, [3, 77, 100]).tolist()
        mean = math.fsum(kept) / len(kept)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in kept) / len(kept))
        assert (means[name], stds[name]) == pytest.approx((mean, std), rel=1e-12)
    row = {name: (columns[name][5] - means[name]) / stds[name] for name in PUBLISHED}
    expected = math.fsum(oracle.PAPER_WEIGHTS[name] * row[name] for name in PUBLISHED)
    assert scores[5] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_rows", [1000, 2 * BLOCK + 5])
def test_workers_change_no_bit(num_rows: int) -> None:
    rng = np.random.default_rng(num_rows)
    columns = {name: rng.normal(index, 3, num_rows) for index, name in enumerate(NAMES)}
    model = LinearMixingModel(NAMES, (0.3, -1.7, 2.2), bias=0.1)
    assert mixed(model, columns).tobytes() == mixed(model, columns, 2).tobytes()
    assert mixed(model, columns).tobytes() == mixed(model, columns, 5).tobytes()


def test_columns_are_read_once_and_not_changed() -> None:
    alive = 0

    def one_by_one() -> Iterator[np.ndarray]:
        nonlocal alive
        for name in NAMES:
            alive += 1
            values = COLUMNS[PUBLISHED[NAMES.index(name)]].copy()
            values.setflags(write=False)
            yield values

    before = {name: COLUMNS[name].tobytes() for name in PUBLISHED[:3]}
    scores, _ = mix(LinearMixingModel(NAMES, (1.0, 2.0, 3.0)), one_by_one())
    assert alive == 3
    assert len(scores) == 300
    assert before == {name: COLUMNS[name].tobytes() for name in PUBLISHED[:3]}


def test_a_model_without_standardisation_keeps_no_statistics() -> None:
    _, model = mix(plain_sum(NAMES), [np.ones(3), np.zeros(3), np.arange(3.0)])
    assert (model.means, model.stds) == (None, None)


def test_saved_statistics_are_used_on_another_pool() -> None:
    model = LinearMixingModel(("a", "b"), (2.0, -1.0), 0.5, means=(1.0, -1.0), stds=(2.0, 4.0))
    scores, saved = mix(model, [np.array([1.0, 5.0]), np.array([3.0, 3.0])])
    assert scores.tolist() == [2 * 0.0 - 1.0 + 0.5, 2 * 2.0 - 1.0 + 0.5]
    assert saved == model


def test_the_first_pool_s_statistics_give_its_scores_again() -> None:
    columns = [COLUMNS[name] for name in PUBLISHED]
    scores, model = mix(PAPER, columns)
    again, same = mix(model, columns)
    assert again.tobytes() == scores.tobytes()
    assert same == model


@pytest.mark.parametrize(
    "values",
    [
        np.full(10, 0.1),
        np.full(10, 0.1, np.float32),
        np.zeros(5),
        np.array([3.0]),
        np.full(4, np.nan),
    ],
)
def test_a_constant_column_cannot_be_standardised(values: np.ndarray) -> None:
    message = refusal(mixed, standardized_sum(("DFN",)), {"DFN": values})
    assert "column 'DFN'" in message
    assert "standard deviation" in message


def test_a_nearly_constant_column_can() -> None:
    values = np.array([1e6, 1e6 + 1e-3] * 10)
    assert mean_and_std(values, "a") == pytest.approx((1e6 + 5e-4, 5e-4), rel=1e-3)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0, -3.0, math.nan, math.inf])
def test_a_ratio_of_at_most_one_or_not_finite_is_refused(ratio: float) -> None:
    assert "--weight_ratio" in refusal(in_weighted_sum, ratio)


@pytest.mark.parametrize(
    "accuracies",
    [{"a": 0.3}, {"a": 0.3, "b": 0.3}, {"a": math.nan, "b": 0.3}, {"a": 0.2, "b": math.nan},
     {"a": 0.1, "b": math.nan, "c": 0.3}, {"a": 0.1, "b": math.inf}],
    ids=str,
)  # fmt: skip
def test_accuracies_that_give_no_weights(accuracies: dict[str, float]) -> None:
    assert "--imagenet_accuracies" in refusal(in_weighted_sum, 8.0, accuracies)


def test_restricted_to_keeps_the_parameters_of_each_column() -> None:
    model = LinearMixingModel(NAMES, (1.0, 2.0, 3.0), 9.0, True, (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))
    restricted = model.restricted_to(["c", "unknown", "a"])
    assert restricted == LinearMixingModel(
        ("a", "c"), (1.0, 3.0), 9.0, True, (4.0, 6.0), (7.0, 9.0)
    )
    assert PAPER.restricted_to(["FLYT"]).means is None


# --------------------------------------------------------------------------- saved models


@pytest.mark.parametrize(
    "model",
    [
        PAPER,
        plain_sum(NAMES),
        LinearMixingModel(("a", 'odd "näme", b'), (1 / 3, -2e-300), 1e300),
        LinearMixingModel(NAMES, (0.1, 0.2, 0.3), 0.4, True, (1 / 7, 2.0, 3.0), (1e-9, 5.0, 6.0)),
    ],
)
def test_saving_and_loading_gives_the_same_model(tmp_path: Path, model: LinearMixingModel) -> None:
    path = tmp_path / "m.safetensors"
    save_mixing_model(model, path)
    assert load_mixing_model(str(path)) == model
    tensors = load_file(path)
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float64)}
    assert set(tensors) == {"weights", "bias"} | ({"means", "stds"} if model.means else set())


KEY = "datacomp_flyt linear mixing model"
AB = {KEY: '{"columns": ["a", "b"], "standardize": true}'}
GOOD = {"weights": np.array([1.0, 2.0]), "bias": np.array(0.5)}
NO_MIXING_MODEL: dict[str, tuple[dict[str, np.ndarray], dict[str, str] | None]] = {
    "no metadata": (GOOD, None),
    "other metadata": (GOOD, {"format": "pt"}),
    "no json": (GOOD, {KEY: "a, b"}),
    "a list": (GOOD, {KEY: '["a", "b"]'}),
    "null": (GOOD, {KEY: "null"}),
    "no standardize": (GOOD, {KEY: '{"columns": ["a", "b"]}'}),
    "fewer columns": (GOOD, {KEY: '{"columns": ["a"], "standardize": true}'}),
    "no columns": (GOOD, {KEY: '{"columns": [], "standardize": true}'}),
    "columns a number": (GOOD, {KEY: '{"columns": 3, "standardize": true}'}),
    "columns null": (GOOD, {KEY: '{"columns": null, "standardize": true}'}),
    "no weights": ({"bias": GOOD["bias"]}, AB),
    "no bias": ({"weights": GOOD["weights"]}, AB),
    "long bias": ({**GOOD, "bias": np.zeros(2)}, AB),
    "nan": ({**GOOD, "weights": np.array([1.0, np.nan])}, AB),
    "infinite": ({**GOOD, "bias": np.array(np.inf)}, AB),
    "long means": ({**GOOD, "means": np.zeros(3), "stds": np.ones(2)}, AB),
    "stds of zero": ({**GOOD, "means": np.zeros(2), "stds": np.zeros(2)}, AB),
}


@pytest.mark.parametrize(
    ("tensors", "metadata"), NO_MIXING_MODEL.values(), ids=NO_MIXING_MODEL.keys()
)
def test_safetensors_that_are_no_mixing_model(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata)
    assert str(path) in refusal(load_mixing_model, str(path))


def test_a_valid_mixing_model_is_loaded(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "m.safetensors", AB)
    model = load_mixing_model(str(tmp_path / "m.safetensors"))
    assert model == LinearMixingModel(("a", "b"), (1.0, 2.0), 0.5)


def test_a_model_saved_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{copy}.safetensors" for copy in range(6)]
    for path in paths:
        save_mixing_model(PAPER, path)
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64])
@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_files_that_are_neither_safetensors_nor_torch_files(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(load_mixing_model, str(tmp_path / name))


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere.safetensors", "Paper", "."])
def test_models_that_are_not_there(tmp_path: Path, name: str) -> None:
    message = refusal(load_mixing_model, str(tmp_path / name))
    assert f"--scoring_model {tmp_path / name} is not a file" in message
