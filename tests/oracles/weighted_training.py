"""open_clip's training of a CLIP model on weighted examples, in float64 code in one process.

The loss is FLYT's Eq. 3, and a step does what open_clip's `train_one_epoch` does. That function has
two quirks, which the tests check with the stock trainer and equal weights:

- With --accum-freq k, it computes the loss of all rows k times. Each time the towers get the
  gradient of the rows of one micro-batch, but the logit scale gets its whole gradient. The logit
  scale's gradient is therefore k times too large.
- On several ranks without --gather-with-grad, each rank has the towers' gradient of its own rows
  only, and the gradients are averaged over the ranks. The towers' gradient is therefore that of the
  loss divided by the number of ranks, and the logit scale's is that of the loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.oracles.weighted_clip_loss import naive_weighted_clip_loss

State = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The trainer's flags, and factors on the gradients of the towers and of the logit scale."""

    num_steps: int
    lr: float = 1e-3
    warmup: int = 2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    towers_factor: float = 1.0
    logit_scale_factor: float = 1.0


@dataclass(frozen=True)
class WeightedBatch:
    """The batch of all ranks: images [B, 3, H, W], tokens [B, L], weights [B]."""

    images: Tensor
    texts: Tensor
    weights: Tensor


def train(
    model: nn.Module, first: State, batches: Sequence[WeightedBatch], settings: Settings
) -> State:
    """Return the float64 state dict after one step for each batch.

    Args:
        model: a model of the architecture; it is not changed.
        first: the initial state dict.
        batches: the batches; the loss divides their weights by the sum of the weights.
        settings: the trainer's flags.
    """
    model = copy.deepcopy(model).double()
    model.load_state_dict({name: value.double() for name, value in first.items()})
    parameters = dict(model.named_parameters())
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
    for step, batch in enumerate(batches):
        model.zero_grad()
        loss = batch_loss(model, batch)
        loss.backward()
        lr = learning_rate(step, settings)
        with torch.no_grad():
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                is_scale = name == "logit_scale"
                factor = settings.logit_scale_factor if is_scale else settings.towers_factor
                gradient = factor * parameter.grad
                adamw(name, parameter, gradient, moments[name], step + 1, lr, settings)
            parameters["logit_scale"].clamp_(0, math.log(100))
    return {name: value.detach() for name, value in model.state_dict().items()}


def batch_loss(model: nn.Module, batch: WeightedBatch) -> Tensor:
    """Compute Eq. 3, with the weights divided by their sum over the batch."""
    images = model.encode_image(batch.images.double())
    texts = model.encode_text(batch.texts)
    images = images / images.norm(dim=1, keepdim=True)
    texts = texts / texts.norm(dim=1, keepdim=True)
    weights = batch.weights.double()
    scale = model.logit_scale.exp()
    return naive_weighted_clip_loss(images, texts, scale, weights / weights.sum())


def learning_rate(step: int, settings: Settings) -> float:
    """Return the rate of a step: linear warmup, then half a cosine."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    part = (step - settings.warmup) / (settings.num_steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * part))


def adamw(
    name: str,
    parameter: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    step: int,
    lr: float,
    settings: Settings,
) -> None:
    first, second = moments
    beta1, beta2 = settings.betas
    first.mul_(beta1).add_((1 - beta1) * gradient)
    second.mul_(beta2).add_((1 - beta2) * gradient * gradient)
    decays = parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias"))
    if decays:
        parameter.mul_(1 - lr * settings.weight_decay)
    mean = first / (1 - beta1**step)
    square = second / (1 - beta2**step)
    parameter.sub_(lr * mean / (square.sqrt() + settings.eps))
