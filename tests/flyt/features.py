"""Random features of a batch, and comparisons of losses and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.flyt import naive_weighted_clip_loss

DOUBLE = torch.float64
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Image features, text features, τ, log weights."""

PARTITIONS = [
    [slice(None)],
    [slice(0, 1), slice(1, 9)],
    [slice(0, 4), slice(4, 4), slice(4, 8), slice(8, 9)],
    [slice(row, row + 1) for row in range(9)],
]


def unit_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=DOUBLE), dim=-1)


def inputs(seed: int = 0, rows: int = 9, width: int = 5, scale: float = 14.0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    log_weights = (2 * torch.randn(rows, generator=generator, dtype=DOUBLE)).log_softmax(0)
    images, texts = unit_rows(rows, width, generator), unit_rows(rows, width, generator)
    return images, texts, torch.tensor(scale, dtype=DOUBLE), log_weights


def naive(images: Tensor, texts: Tensor, scale: Tensor, log_weights: Tensor) -> Tensor:
    return naive_weighted_clip_loss(images, texts, scale, log_weights.exp())


def value_and_gradients(loss: Callable[..., Tensor], given: Inputs) -> tuple[Tensor, ...]:
    """Return a loss and its gradients in the features, τ and log weights."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def assert_all_close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...], rtol: float) -> None:
    """Compare entry by entry, with a tolerance relative to the largest entry."""
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))
