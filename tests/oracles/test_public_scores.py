"""The oracles of the scores against the public code in float32 (NCL_DIR: see public_ncl)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.oracles import scores
from tests.scorers.public_ncl import (
    public_neg_clip_loss,
    public_norm_sim,
    public_norm_sim_d,
    public_two_stage,
    public_vas,
    requires_checkout,
)

pytestmark = [pytest.mark.slow, requires_checkout]

ROWS, WIDTH, TARGETS = 150, 32, 40


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def pool(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Make pairs with CLIP-like similarities of about 0.3; at 0.887, exp(s / 0.01) overflows."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(ROWS, WIDTH))
    images = unit(0.6 * common + rng.normal(size=(ROWS, WIDTH)))
    texts = unit(0.6 * common + rng.normal(size=(ROWS, WIDTH)))
    return images.astype(dtype), texts.astype(dtype)


def targets() -> np.ndarray:
    return unit(np.random.default_rng(1).normal(size=(TARGETS, WIDTH)) + 0.2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
@pytest.mark.parametrize(
    ("batch_size", "num_repeats"), [(64, 3), (50, 2), (150, 1), (1000, 1), (149, 2)]
)
def test_neg_clip_loss(dtype: str, temperature: float, batch_size: int, num_repeats: int) -> None:
    images, texts = pool(dtype)
    theirs, permutations = public_neg_clip_loss(
        images, texts, temperature, batch_size, num_repeats, seed=7
    )
    assert len(permutations) == num_repeats
    assert not any(map(np.array_equal, permutations, permutations[1:]))
    ours = scores.neg_clip_loss_literal(images, texts, temperature, permutations, batch_size)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)


def test_the_permutations_follow_from_the_seed() -> None:
    images, texts = pool()
    first, again, other = (public_neg_clip_loss(images, texts, 0.01, 40, 2, s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_the_public_code_overflows_in_float32_and_the_oracle_does_not() -> None:
    images, texts = pool()
    texts[0] = images[0]
    theirs, permutations = public_neg_clip_loss(images, texts, 0.01, 1000, 1, seed=7)
    ours = scores.neg_clip_loss_literal(images, texts, 0.01, permutations, 1000)
    assert theirs[0] == -math.inf
    assert -1e-6 < ours[0] <= 0
    np.testing.assert_allclose(theirs[1:], ours[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 64])
@pytest.mark.parametrize("p", [2, 3, math.inf])
def test_norm_sim(p: float, batch_size: int | None) -> None:
    theirs = public_norm_sim(pool()[0], targets(), p, batch_size)
    np.testing.assert_allclose(theirs, scores.norm_sim(pool()[0], targets(), p), rtol=2e-6)


def test_norm_sim_inf_takes_absolute_values() -> None:
    assert public_norm_sim(pool()[0], -pool()[0], math.inf) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1000, 7])
def test_vas(batch_size: int) -> None:
    theirs = public_vas(pool()[0], targets(), batch_size)
    np.testing.assert_allclose(theirs, scores.vas(pool()[0], targets()), rtol=2e-6)


@pytest.mark.parametrize("batch_size", [1000, 33])
@pytest.mark.parametrize(("num_kept", "num_rounds"), [(40, 7), (27, 20), (50, 5)])
def test_norm_sim_d(num_kept: int, num_rounds: int, batch_size: int, tmp_path: Path) -> None:
    images, texts = pool()
    clip = scores.clip_score(images, texts)
    inside = clip > np.quantile(clip, 0.3)
    theirs = public_norm_sim_d(images, inside, num_kept, num_rounds, tmp_path, batch_size)
    ours = scores.norm_sim_d(images, inside, num_kept, num_rounds)
    np.testing.assert_array_equal(theirs, ours)


def test_norm_sim_d_of_the_public_code_drops_too_many(tmp_path: Path) -> None:
    """The public code drops 1 of 31 rows a round: 26 remain after five rounds, 22 after nine."""
    images, _ = pool()
    inside = np.arange(ROWS) < 31
    with pytest.raises(RuntimeError, match="out of range"):
        public_norm_sim_d(images, inside, 26, 10, tmp_path)
    fate = scores.norm_sim_d(images, inside, 26, 10)
    assert np.bincount(fate)[1:].tolist() == [1] * 5 + [0] * 5 + [26]


@pytest.mark.parametrize("fractions", [(0.3, 0.2), (0.125, 0.1), (0.29, 0.29), (0.8, 0.1)])
def test_two_stage(fractions: tuple[float, float]) -> None:
    first, second = np.random.default_rng(2).normal(size=(2, 400))
    theirs = public_two_stage(first, second, *fractions)
    assert theirs.sum() == int(400 * fractions[1])
    np.testing.assert_array_equal(theirs, scores.two_stage(first, second, *fractions))
