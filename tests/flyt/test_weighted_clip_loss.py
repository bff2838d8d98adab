"""The weighted CLIP loss (Eq. 3) against the printed formula; its principles, dtypes and parts."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import torch.nn.functional as F
from torch import Tensor

from datacomp_flyt.flyt.weighted_loss import (
    weight_gradient_along,
    weighted_clip_loss,
    weighted_clip_loss_of_rows,
)
from tests.flyt.features import (
    DOUBLE,
    PARTITIONS,
    assert_all_close,
    inputs,
    naive,
    unit_rows,
    value_and_gradients,
)

# ------------------------------------------------------------------------------------- Eq. 3


def test_the_loss_of_fixed_vectors() -> None:
    images, texts = (
        F.normalize(torch.tensor(rows, dtype=DOUBLE), dim=-1)
        for rows in (
            [[1, 2, 2], [2, 1, 0], [0, 3, 4], [1, 1, 1]],
            [[1, 2, 1], [2, 0, 1], [1, 3, 4], [1, -1, 1]],
        )
    )
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=DOUBLE)
    loss = weighted_clip_loss(images, texts, torch.tensor(10.0, dtype=DOUBLE), weights.log())
    assert float(loss) == pytest.approx(0.9181759301, abs=5e-11)


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_value_and_gradients_equal_those_of_the_formula(rows: int, scale: float) -> None:
    given = inputs(seed=rows, rows=rows, scale=scale)
    ours = value_and_gradients(weighted_clip_loss, given)
    assert_all_close(ours, value_and_gradients(naive, given), 1e-10)


def test_weights_are_not_normalised() -> None:
    """The loss is right for weights that do not sum to 1, as ∂L/∂w requires."""
    images, texts, scale, log_weights = inputs()
    given = (images, texts, scale, log_weights + 1.7)
    ours = value_and_gradients(weighted_clip_loss, given)
    assert_all_close(ours, value_and_gradients(naive, given), 1e-10)


# ---------------------------------------------------------------------------- design principles


def pulls(texts: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
    """Return ∂L/∂a [i, j]; with unit vectors as images, ∂L/∂v_j = τ ∂L/∂a[:, j]."""
    leaf = texts.clone().requires_grad_()
    eye = torch.eye(len(texts), dtype=DOUBLE)
    (gradient,) = torch.autograd.grad(weighted_clip_loss(eye, leaf, scale, weights.log()), leaf)
    return gradient.T / scale


def test_a_larger_weight_pulls_its_pair_and_pushes_all_others_more() -> None:
    """If w_k grows and the other weights do not, entries of |dL/da| grow in row and column k.

    They are w_k (1 - p_kk) for pair k, and w_i p_ik and w_k p_kj for k with the other pairs.
    """
    generator = torch.Generator().manual_seed(4)
    texts, scale = unit_rows(6, 6, generator), torch.tensor(5.0, dtype=DOUBLE)
    weights = torch.rand(6, generator=generator, dtype=DOUBLE) / 6
    for k in range(6):
        actual = []
        for weight in (0.01, 0.1, 0.3, 1.0):
            weights_now = weights.clone()
            weights_now[k] = weight
            actual.append(pulls(texts, scale, weights_now))
        others = torch.arange(6) != k
        for less, more in itertools.pairwise(actual):
            assert more[k, k] < less[k, k] < 0
            assert (more[others, k] > less[others, k]).all()
            assert (more[k, others] > less[k, others]).all()
            assert (less[k, others] > 0).all()


@pytest.mark.parametrize("zeros", [[0], [8], [3, 4], [0, 2, 5, 8], [0, 1, 2, 3, 5, 6, 7, 8]])
@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_weight_zero_leaves_the_example_out(zeros: list[int], scale: float) -> None:
    images, texts, tau, log_weights = inputs(scale=scale)
    kept = torch.tensor([row for row in range(9) if row not in zeros])
    log_weights[zeros] = -torch.inf
    value, *gradients = value_and_gradients(weighted_clip_loss, (images, texts, tau, log_weights))
    expected = value_and_gradients(naive, (images[kept], texts[kept], tau, log_weights[kept]))
    by_images, by_texts, by_scale, by_weights = gradients
    ours = (value, by_images[kept], by_texts[kept], by_scale, by_weights[kept])
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for gradient in (by_images, by_texts, by_weights):
        assert torch.equal(gradient[zeros], torch.zeros_like(gradient[zeros]))


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_uniform_weights_give_open_clips_loss(scale: float) -> None:
    from open_clip.loss import ClipLoss

    images, texts, tau, log_weights = inputs(scale=scale)
    uniform = torch.full_like(log_weights, -math.log(9))
    ours = value_and_gradients(weighted_clip_loss, (images, texts, tau, uniform))
    theirs = value_and_gradients(
        lambda u, v, s, lw: ClipLoss()(u, v, s) + 0 * lw.sum(), (images, texts, tau, uniform)
    )
    assert_all_close(ours[:4], theirs[:4], 1e-10)


def test_a_weight_acts_on_positives_and_on_negatives() -> None:
    """dL/d log w_k is w_i p_ik in another row i, and w_k (loss_k - (1 - p_kk)) in row k."""
    images, texts, scale, log_weights = inputs()
    weights, k = log_weights.exp(), 3
    others = torch.arange(9) != k
    expected = torch.zeros(2, dtype=DOUBLE)
    for cosines in (images @ texts.T, texts @ images.T):
        p = (scale * cosines).exp() * weights
        p = p / p.sum(1, keepdim=True)
        expected[0] += (weights * p[:, k])[others].sum() / 2
        expected[1] += weights[k] * (-p[k, k].log() - (1 - p[k, k])) / 2

    def by_weight(rows: slice) -> Tensor:
        leaf = log_weights.clone().requires_grad_()
        loss = weighted_clip_loss_of_rows(images, texts, scale, leaf, rows)
        return torch.autograd.grad(loss, leaf)[0][k]

    as_negative = by_weight(slice(0, k)) + by_weight(slice(k + 1, 9))
    as_positive = by_weight(slice(k, k + 1))
    torch.testing.assert_close(as_negative, expected[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(as_positive, expected[1], rtol=1e-10, atol=0)
    assert as_negative > 1e-3
    assert abs(as_positive) > 1e-3


# ------------------------------------------------------------------------------ number formats


@pytest.mark.parametrize("least", [-1.0, -20.0, -200.0])
def test_large_scale_and_extreme_weights_do_not_overflow_float32(least: float) -> None:
    """Logits of 100 do not overflow; in the public code they do."""
    images, texts, tau, _ = inputs(scale=100.0)
    order = torch.tensor([6, 1, 4, 8, 0, 3, 7, 2, 5])
    log_weights = torch.linspace(least, 0.0, 9, dtype=DOUBLE)[order].log_softmax(0)
    texts[[4, 7]] = images[[4, 2]]  # cosine 1: text 4 with its own image, text 7 with another
    given = (images, texts, tau, log_weights)
    ours = value_and_gradients(weighted_clip_loss, tuple(tensor.float() for tensor in given))
    assert all(tensor.isfinite().all() for tensor in ours)
    expected = value_and_gradients(naive, given)
    assert_all_close(tuple(tensor.double() for tensor in ours), expected, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_features_are_converted_to_float32(dtype: torch.dtype) -> None:
    images, texts, tau, log_weights = inputs(scale=100.0)
    rounded = (images.to(dtype), texts.to(dtype), tau.float(), log_weights.float())
    ours = value_and_gradients(weighted_clip_loss, rounded)
    expected = value_and_gradients(weighted_clip_loss, tuple(t.float() for t in rounded))
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == ours[2].dtype == dtype
    assert all(tensor.isfinite().all() for tensor in ours)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.float(), other.to(one.dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_round_the_loss(dtype: torch.dtype) -> None:
    given = tuple(tensor.float() for tensor in inputs(scale=100.0))
    expected = value_and_gradients(weighted_clip_loss, given)
    tangents = (torch.ones(9, 5), torch.ones(9, 5), torch.ones(()))
    along = weight_gradient_along(given[:3], tangents, given[3])

    def under_autocast(*leaves: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
            return weighted_clip_loss(*leaves)

    ours = value_and_gradients(under_autocast, given)
    with torch.autocast("cpu", dtype):
        ours_along = weight_gradient_along(given[:3], tangents, given[3])
    for one, other in zip((*ours, ours_along), (*expected, along), strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------- parts of rows


@pytest.mark.parametrize("partition", PARTITIONS, ids=len)
def test_parts_of_a_partition_add_up(partition: list[slice]) -> None:
    given = inputs()

    def in_parts(*leaves: Tensor) -> Tensor:
        return torch.stack([weighted_clip_loss_of_rows(*leaves, rows) for rows in partition]).sum()

    ours = value_and_gradients(in_parts, given)
    assert_all_close(ours, value_and_gradients(weighted_clip_loss, given), 1e-12)
