"""The oracles of the scores against fixed values, calculation by hand and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.oracles import scores

EIGHT_DECIMALS = {"rtol": 0, "atol": 5.1e-9}  # the fixed values have eight decimals
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def unit(vectors: object) -> np.ndarray:
    matrix = np.asarray(vectors, dtype=np.float64)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def pairs(num_rows: int, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random unit rows, and other unit rows that correlate with them."""
    rng = np.random.default_rng(seed)
    images = unit(rng.normal(size=(num_rows, width)))
    return images, unit(images + rng.normal(size=(num_rows, width)))


IMAGES = unit([[1, 2, 2], [2, 1, 0], [0, 3, 4], [1, 1, 1]])
TEXTS = unit([[1, 2, 1], [2, 0, 1], [1, 3, 4], [1, -1, 1]])
TARGETS = unit([[1, 0, 0], [1, 1, 1]])
NEG_CLIP_LOSS = {
    0.01: [-0.01589325, -0.00038413, -0.00346715, -0.30486285],
    0.07: [-0.05724589, -0.03078602, -0.03302791, -0.33755379],
}
NORM_SIM = {
    2.0: [1.01835015, 1.18321596, 0.80829038, 1.15470054],
    math.inf: [0.96225045, 0.89442719, 0.80829038, 1],
}


# --------------------------------------------------------------------------- fixed values


def test_clip_score_of_fixed_vectors() -> None:
    expected = [0.95257934, 0.8, 0.98058068, 0.33333333]
    np.testing.assert_allclose(scores.clip_score(IMAGES, TEXTS), expected, **EIGHT_DECIMALS)


@pytest.mark.parametrize("temperature", NEG_CLIP_LOSS)
def test_neg_clip_loss_of_fixed_vectors(temperature: float) -> None:
    actual = scores.neg_clip_loss_batch(IMAGES, TEXTS, temperature)
    np.testing.assert_allclose(actual, NEG_CLIP_LOSS[temperature], **EIGHT_DECIMALS)


@pytest.mark.parametrize("p", NORM_SIM)
def test_norm_sim_of_fixed_vectors(p: float) -> None:
    np.testing.assert_allclose(scores.norm_sim(IMAGES, TARGETS, p), NORM_SIM[p], **EIGHT_DECIMALS)


def test_vas_of_fixed_vectors() -> None:
    expected = [0.51851852, 0.7, 0.32666667, 0.66666667]
    np.testing.assert_allclose(scores.vas(IMAGES, TARGETS), expected, **EIGHT_DECIMALS)


# --------------------------------------------------------------------------------- negCLIPLoss


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_neg_clip_loss_is_the_mean_log_softmax_of_the_diagonal(temperature: float) -> None:
    images, texts = pairs(9)
    weights = np.exp(images @ texts.T / temperature)
    by_text = np.log(np.diag(weights) / weights.sum(axis=1))
    by_image = np.log(np.diag(weights) / weights.sum(axis=0))
    actual = scores.neg_clip_loss_batch(images, texts, temperature)
    np.testing.assert_allclose(actual, temperature * (by_text + by_image) / 2, **CLOSE)
    assert (actual <= 0).all()


def test_neg_clip_loss_is_symmetric_and_permutes_with_its_rows() -> None:
    images, texts = pairs(8)
    losses = scores.neg_clip_loss_batch(images, texts, 0.05)
    order = np.random.default_rng(1).permutation(8)
    permuted = scores.neg_clip_loss_batch(images[order], texts[order], 0.05)
    np.testing.assert_allclose(permuted, losses[order], **CLOSE)
    np.testing.assert_allclose(scores.neg_clip_loss_batch(texts, images, 0.05), losses, **CLOSE)


def test_copies_in_the_batch_cost_the_logarithm_of_their_number() -> None:
    images, texts = pairs(5)
    losses = scores.neg_clip_loss_batch(images, texts, 0.02)
    tripled = scores.neg_clip_loss_batch(np.tile(images, (3, 1)), np.tile(texts, (3, 1)), 0.02)
    np.testing.assert_allclose(tripled, np.tile(losses - 0.02 * math.log(3), 3), **CLOSE)


def test_a_single_row_scores_zero_and_no_similarity_overflows() -> None:
    images, texts = pairs(1)
    assert scores.neg_clip_loss_batch(images, texts, 0.01) == pytest.approx(0, abs=1e-15)
    same = np.tile(images, (4, 1))
    actual = scores.neg_clip_loss_batch(same, same, 1e-6)
    np.testing.assert_allclose(actual, -1e-6 * math.log(4), rtol=1e-9)


def test_partitions_are_averaged() -> None:
    images, texts = pairs(7)
    halves = [[0, 1, 2, 3], [4, 5, 6]]
    crossed = [[6, 0, 2], [5, 1, 4, 3]]
    for partition in (halves, crossed):
        alone = scores.neg_clip_loss(images, texts, 0.03, [partition])
        for batch in partition:
            expected = scores.neg_clip_loss_batch(images[batch], texts[batch], 0.03)
            np.testing.assert_allclose(alone[batch], expected, **CLOSE)
    parts = [scores.neg_clip_loss(images, texts, 0.03, [part]) for part in (halves, crossed)]
    both = scores.neg_clip_loss(images, texts, 0.03, [halves, crossed])
    np.testing.assert_allclose(both, (parts[0] + parts[1]) / 2, **CLOSE)


def test_a_partition_must_hold_every_row_once() -> None:
    images, texts = pairs(3)
    with pytest.raises(AssertionError):
        scores.neg_clip_loss(images, texts, 0.03, [[[0, 1], [1, 2]]])


def test_the_last_literal_batch_has_the_remaining_rows() -> None:
    images, texts = pairs(8)
    orders = [[3, 1, 0, 7, 6, 2, 5, 4], [0, 1, 2, 3, 4, 5, 6, 7]]
    actual = scores.neg_clip_loss_literal(images, texts, 0.03, orders, 3)
    partitions = [[[3, 1, 0], [7, 6, 2], [5, 4]], [[0, 1, 2], [3, 4, 5], [6, 7]]]
    np.testing.assert_array_equal(actual, scores.neg_clip_loss(images, texts, 0.03, partitions))
    whole = scores.neg_clip_loss_literal(images, texts, 0.03, orders[:1], 100)
    expected = scores.neg_clip_loss_batch(images, texts, 0.03)
    np.testing.assert_allclose(whole, expected, **CLOSE)


# --------------------------------------------------------------------------- NormSim and VAS


def test_norm_sim_2_squared_is_vas_times_the_number_of_targets() -> None:
    images, targets = pairs(9)[0], pairs(5, seed=2)[0]
    squared = scores.norm_sim(images, targets, 2) ** 2
    np.testing.assert_allclose(squared / 5, scores.vas(images, targets), **CLOSE)


def test_norm_sim_inf_takes_absolute_values_and_is_the_limit_of_p() -> None:
    images, targets = pairs(9)[0], pairs(5, seed=2)[0]
    actual = scores.norm_sim(images, targets, math.inf)
    np.testing.assert_allclose(actual, np.abs(images @ targets.T).max(axis=1), **CLOSE)
    np.testing.assert_allclose(scores.norm_sim(images, targets, 400), actual, rtol=1e-2)
    np.testing.assert_allclose(scores.norm_sim(images, -images, math.inf), 1, **CLOSE)


@pytest.mark.parametrize("p", [1, 2, 3.5, math.inf])
def test_norm_sim_does_not_depend_on_the_order_of_targets(p: float) -> None:
    images, targets = pairs(6)[0], pairs(5, seed=2)[0]
    actual = scores.norm_sim(images, targets, p)
    np.testing.assert_allclose(scores.norm_sim(images, targets[::-1], p), actual, **CLOSE)


# --------------------------------------------------------------------------------- NormSim_2-D

AXIS, SLANT, UP = [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]


def test_norm_sim_d_by_hand() -> None:
    """In round 1, Σ is nearly that of AXIS alone, so the second UP is dropped. In round 2, Σ of
    {AXIS, SLANT, UP} is [[1.36, .48], [.48, 1.64]] / 3: times 3, the values are 1.36, 2, 1.64."""
    pool = [AXIS] * 5 + [AXIS, SLANT, UP, UP]
    inside = [False] * 5 + [True] * 4
    assert scores.norm_sim_d(pool, inside, 2, 2).tolist() == [0] * 5 + [2, 3, 3, 1]


def test_norm_sim_d_starts_from_the_whole_pool() -> None:
    inside = [False] * 5 + [True] * 3
    assert scores.norm_sim_d([AXIS] * 5 + [AXIS, UP, UP], inside, 1, 1)[5:].tolist() == [2, 1, 1]
    assert scores.norm_sim_d([AXIS, UP, UP], [True] * 3, 1, 1).tolist() == [1, 2, 1]


def test_norm_sim_d_of_one_round_is_vas_with_the_pool_as_target() -> None:
    images, _ = pairs(30)
    inside = np.random.default_rng(3).random(30) < 0.7
    values = np.where(inside, scores.vas(images, images), -1)
    expected = np.where(inside, 1, 0)
    expected[np.argsort(-values)[:8]] = 2
    np.testing.assert_array_equal(scores.norm_sim_d(images, inside, 8, 1), expected)


@pytest.mark.parametrize(
    ("first", "num_kept", "num_rounds", "dropped"),
    [
        (12, 4, 4, [2, 2, 2, 2]),
        (12, 5, 4, [2, 2, 2, 1]),
        (9, 4, 4, [2, 2, 1, 0]),  # a third chunk of 2 would leave 3 rows
        (6, 4, 5, [1, 1, 0, 0, 0]),
        (7, 7, 3, [0, 0, 0]),
        (3, 0, 2, [2, 1]),
    ],
)
def test_norm_sim_d_drops_chunks_and_never_too_many(
    first: int, num_kept: int, num_rounds: int, dropped: list[int]
) -> None:
    images, _ = pairs(15)
    rounds = scores.norm_sim_d(images, np.arange(15) < first, num_kept, num_rounds)
    counts = np.bincount(rounds, minlength=num_rounds + 2).tolist()
    assert counts == [15 - first, *dropped, num_kept]


def test_norm_sim_d_keeps_the_smaller_uid_of_equal_rows() -> None:
    rounds = scores.norm_sim_d([SLANT] * 5, [True] * 5, 1, 4, uids=["d", "b", "e", "a", "c"])
    assert rounds.tolist() == [2, 4, 1, 5, 3]
    assert scores.norm_sim_d([SLANT] * 5, [True] * 5, 1, 4).tolist() == [5, 4, 3, 2, 1]


def test_norm_sim_d_permutes_with_its_rows() -> None:
    images, _ = pairs(25)
    inside = np.random.default_rng(4).random(25) < 0.8
    order = np.random.default_rng(5).permutation(25)
    rounds = scores.norm_sim_d(images, inside, 6, 5)
    permuted = scores.norm_sim_d(images[order], inside[order], 6, 5, uids=order.tolist())
    np.testing.assert_array_equal(permuted, rounds[order])


# ----------------------------------------------------------------------------------- two stages


def test_two_stage_fractions_are_of_the_whole_pool() -> None:
    first = [9, 1, 8, 2, 7, 3, 0, 4, 5, 6]
    second = [1, 9, 3, 9, 2, 9, 9, 9, 9, 9]
    kept = np.flatnonzero(scores.two_stage(first, second, 0.3, 0.2))
    assert kept.tolist() == [2, 4]  # the first score keeps 0, 2 and 4
    assert scores.two_stage(first, second, 0.3, 0.3).nonzero()[0].tolist() == [0, 2, 4]


def test_two_stage_truncates_the_product_in_floating_point() -> None:
    first, second = np.random.default_rng(6).normal(size=(2, 100))
    assert 100 * 0.29 < 29
    assert scores.two_stage(first, second, 0.29, 0.29).sum() == 28


def test_two_stage_keeps_the_smaller_uid_of_equal_rows() -> None:
    kept = scores.two_stage([1] * 4, [1] * 4, 0.5, 0.25, uids=["c", "b", "a", "d"])
    assert kept.tolist() == [False, False, True, False]
    crossed = scores.two_stage([1] * 4, [0, 1, 2, 3], 0.5, 0.25, uids=["c", "b", "a", "d"])
    assert crossed.tolist() == [False, False, True, False]
