"""`weight_gradient_along` against differentiating the loss twice."""

from __future__ import annotations

import math
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from torch import Tensor

from datacomp_flyt.flyt.weighted_loss import weight_gradient_along
from tests.flyt.features import DOUBLE, PARTITIONS, Inputs, assert_all_close, inputs
from tests.oracles.flyt import naive_weighted_clip_loss


def tangents_of(features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(77)
    images, texts, scale = (
        torch.randn(tensor.shape, generator=generator, dtype=DOUBLE) for tensor in features
    )
    return images, texts, scale


def derivative(given: Inputs, tangents: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """Return the derivative of the loss along the tangents [], by autograd."""

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        return naive_weighted_clip_loss(images, texts, scale, weights)

    leaves = [tensor.detach().clone().requires_grad_() for tensor in given[:3]]
    gradients = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    pairs = zip(gradients, tangents, strict=True)
    return torch.stack([(gradient * tangent).sum() for gradient, tangent in pairs]).sum()


def by_double_differentiation(given: Inputs, tangents: tuple[Tensor, ...]) -> Tensor:
    weights = given[3].exp().requires_grad_()
    return torch.autograd.grad(derivative(given, tangents, weights), weights)[0]


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
@pytest.mark.parametrize("moving", ["all", "images", "texts", "scale"])
def test_weight_gradient_equals_double_differentiation(moving: str, scale: float) -> None:
    given = inputs(scale=scale)
    tangents = tuple(
        tangent if moving in ("all", name) else torch.zeros_like(tangent)
        for name, tangent in zip(("images", "texts", "scale"), tangents_of(given[:3]), strict=True)
    )
    ours = weight_gradient_along(given[:3], tangents, given[3])
    assert_all_close((ours,), (by_double_differentiation(given, tangents),), 1e-10)


def test_weight_gradient_at_weight_zero() -> None:
    """The derivative at w_k = 0 equals one-sided differences."""
    images, texts, scale, log_weights = inputs()
    zeros = [1, 6]
    log_weights[zeros] = -torch.inf
    given = (images, texts, scale, log_weights)
    tangents = tangents_of(given[:3])
    ours = weight_gradient_along(given[:3], tangents, log_weights)
    almost = log_weights.clone()
    almost[zeros] = math.log(1e-30)
    expected = by_double_differentiation((*given[:3], almost), tangents)
    assert_all_close((ours,), (expected,), 1e-10)

    def at(k: int, weight: float) -> Tensor:
        weights = almost.exp()  # the printed formula has no value at weight 0
        weights[k] = weight
        return derivative(given, tangents, weights)

    for k in zeros:
        h = 1e-6
        slope = (4 * at(k, h) - at(k, 2 * h) - 3 * at(k, 1e-30)) / (2 * h)
        torch.testing.assert_close(ours[k], slope, rtol=1e-6, atol=0)
        assert abs(ours[k]) > 1e-2


@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_weight_gradient_in_float32(scale: float) -> None:
    """The derivative is right in float32 at weights of 0, where an exponent is about 200."""
    images, texts, tau, log_weights = inputs(scale=scale)
    log_weights[[0, 5]] = -torch.inf
    given = (images, texts, tau, log_weights)
    tangents = tangents_of(given[:3])
    expected = weight_gradient_along(given[:3], tangents, log_weights)
    ours = weight_gradient_along(
        tuple(tensor.float() for tensor in given[:3]),
        tuple(tensor.float() for tensor in tangents),
        log_weights.float(),
    )
    assert ours.dtype == torch.float32
    for rows in (log_weights == -torch.inf, log_weights > -torch.inf):
        assert_all_close((ours[rows].double(),), (expected[rows],), 1e-4)


def test_weight_gradient_is_finite_in_float32_for_opposite_pairs() -> None:
    """The derivative is finite if all weighted pairs are opposite, although exp(200) is inf."""
    images, texts, tau, log_weights = (tensor.float() for tensor in inputs(scale=100.0))
    texts[:2], images[2:], texts[2:] = -images[:2], images[:1], images[:1]
    log_weights[2:] = -torch.inf
    ours = weight_gradient_along(
        (images, texts, tau),
        tuple(tensor.float() for tensor in tangents_of((images, texts, tau))),
        log_weights,
    )
    assert ours.isfinite().all()


@pytest.mark.parametrize("block", [1, 2, 4, 1024])
@pytest.mark.parametrize("partition", PARTITIONS, ids=len)
def test_weight_gradient_in_any_blocks_and_parts(
    monkeypatch: pytest.MonkeyPatch, partition: list[slice], block: int
) -> None:
    given = inputs()
    tangents = tangents_of(given[:3])
    # in the package, the function hides the module of the same name
    module = sys.modules[weight_gradient_along.__module__]
    monkeypatch.setattr(module, "_BLOCK", block)
    parts = [weight_gradient_along(given[:3], tangents, given[3], rows) for rows in partition]
    expected = by_double_differentiation(given, tangents)
    assert_all_close((torch.stack(parts).sum(0),), (expected,), 1e-10)


def test_weight_gradient_builds_no_graph() -> None:
    images, texts, scale, log_weights = (tensor.requires_grad_() for tensor in inputs())
    features = (images, texts, scale)
    ours = weight_gradient_along(features, tangents_of(features), log_weights)
    assert not ours.requires_grad
