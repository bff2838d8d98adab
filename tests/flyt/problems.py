"""Small FLYT steps, solved by the oracle's brute force and by `weight_metagradient`.

The processes of `tests.flyt.ranks` import this module, so it does not import pytest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from datacomp_flyt.distributed.collectives import rows_of_rank
from datacomp_flyt.flyt.downstream_loss import CrossEntropy, DownstreamClipLoss
from datacomp_flyt.flyt.lookahead_adamw import (
    LookaheadAdamW,
    LookaheadOptimizer,
    LookaheadSGD,
    OptimizerState,
)
from datacomp_flyt.flyt.metagradient import Downstream, Metagradient, weight_metagradient
from datacomp_flyt.flyt.towers import Towers
from tests.oracles import flyt as oracle

LOSSES = ("cross_entropy", "cross_entropy_temperature", "clip", "several_tasks")
LOG_TEMPERATURE = torch.tensor(1.3, dtype=torch.float64)
DOUBLE = torch.float64


@dataclass(frozen=True, eq=False)  # compared by identity, for the cache of `brute_force`
class Problem:
    """The inputs of a step, in float64; the moments come from earlier steps, or are 0."""

    model: nn.Module
    params: dict[str, Tensor]
    moments: oracle.Moments
    upstream: oracle.Upstream
    weights: Tensor
    downstream: oracle.Downstream
    optimizer: oracle.Optimizer

    def by_brute_force(self) -> oracle.Step:
        """Return the oracle's result."""
        return oracle.brute_force(*self._arguments())

    def slope(self, direction: Tensor, size: float = 3e-5) -> float:
        """Return the slope of L_down along a direction of the weights, by finite differences."""
        return oracle.finite_difference(*self._arguments(), direction, size)

    def _arguments(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())


@lru_cache
def problem(
    loss: str = "cross_entropy",
    batch: int = 8,
    downstream_batch: int = 8,
    kind: str = "adamw",
    warm: bool = True,
    classes: int = 5,
) -> Problem:
    """Make a random problem. With several tasks, the second task has two more classes."""
    model = oracle.small_clip()
    params = oracle.named_parameters(model)
    optimizer = oracle.Optimizer(kind=kind)
    if kind == "sgd":
        # the oracle's SGD is torch's, which adds decay to the gradient; ours has decoupled decay
        optimizer = replace(optimizer, lr=0.1, momentum=0.9, weight_decay=0.0)
    moments = oracle.no_moments(params)
    if warm:
        moments = oracle.warm_moments(model, params, optimizer=optimizer)
    counts = (classes, 2) if loss == "several_tasks" else (classes,)
    upstream, weights, downstream = oracle.random_batches(batch, downstream_batch, counts)
    downstream = replace(
        downstream,
        loss="clip" if loss == "clip" else "cross_entropy",
        log_temperature=None if loss == "cross_entropy" else LOG_TEMPERATURE,
    )
    return Problem(model, params, moments, upstream, weights, downstream, optimizer)


@lru_cache
def brute_force(problem: Problem) -> oracle.Step:
    """Return the oracle's result, from a cache."""
    return problem.by_brute_force()


def optimizer_of(problem: Problem) -> LookaheadOptimizer:
    """Make the look-ahead optimizer with the oracle's settings."""
    theirs = problem.optimizer
    if theirs.kind == "sgd":
        return LookaheadSGD(theirs.momentum, theirs.weight_decay)
    return LookaheadAdamW(theirs.betas, theirs.eps, theirs.weight_decay)


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copy tensors to another dtype."""
    return {name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}


def state_of(moments: oracle.Moments, dtype: torch.dtype = DOUBLE) -> OptimizerState:
    """Convert the oracle's moments to an optimizer state."""
    return OptimizerState(moments.step, cast(moments.first, dtype), cast(moments.second, dtype))


def downstream_of(downstream: oracle.Downstream, dtype: torch.dtype = DOUBLE) -> Downstream:
    """Make this rank's share of a downstream batch, with its loss."""
    num_images = len(downstream.images)
    temperature = torch.zeros((), dtype=DOUBLE)
    if downstream.log_temperature is not None:
        temperature = downstream.log_temperature
    tasks = None
    if len(downstream.class_counts) > 1:
        tasks = torch.repeat_interleave(torch.tensor(downstream.class_counts))
    loss: CrossEntropy | DownstreamClipLoss = CrossEntropy(downstream.labels, tasks)
    texts = downstream.prompts
    if downstream.loss == "clip":
        loss, texts = DownstreamClipLoss(), downstream.captions
    return Downstream(
        images=downstream.images[rows_of_rank(num_images)].to(dtype),
        texts=texts[rows_of_rank(len(texts))],
        num_images=num_images,
        num_texts=len(texts),
        loss=loss,
        logit_scale=temperature.exp().to(dtype),
    )


def solve(
    problem: Problem,
    tangent: str = "exact",
    micro_batch_size: int | None = None,
    dtype: torch.dtype = DOUBLE,
    autocast: torch.dtype | None = None,
    gradient_scale: float = 1.0,
    **changed: Any,
) -> Metagradient:
    """Call `weight_metagradient` on this rank's rows; `changed` replaces arguments."""
    share = rows_of_rank(len(problem.weights))
    model = oracle.small_clip(dtype)
    arguments: dict[str, Any] = {
        "towers": Towers(model, micro_batch_size, autocast, gradient_scale),
        "params": cast(problem.params, dtype),
        "optimizer": optimizer_of(problem),
        "state": state_of(problem.moments, dtype),
        "lr": problem.optimizer.lr,
        "images": problem.upstream.images[share].to(dtype),
        "texts": problem.upstream.texts[share],
        "log_weights": problem.weights.to(dtype).log(),
        "downstream": downstream_of(problem.downstream, dtype),
        "tangent": tangent,
    }
    return weight_metagradient(**arguments | changed)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Compute |ours - expected| / |expected|."""
    error = float((ours.double() - expected.double()).norm() / expected.double().norm())
    return error if math.isfinite(error) else math.inf


def worst_error(ours: Metagradient, problem: Problem) -> float:
    """Compute the largest relative error of ∂L/∂w, g, θ⁺, the losses and ∂L/∂τ."""
    theirs = brute_force(problem)
    pairs = [
        (ours.weight_gradient, theirs.weight_gradient),
        (ours.upstream_loss, theirs.upstream_loss),
        (ours.downstream_loss, theirs.downstream_loss),
        (flat(ours.grads), flat(theirs.upstream_gradient)),
        (flat(ours.params), flat(theirs.stepped)),
    ]
    if theirs.temperature_gradient is not None:
        by_log = ours.logit_scale_gradient * problem.downstream.log_temperature.exp()
        pairs.append((by_log, theirs.temperature_gradient))
    return max(relative_error(*pair) for pair in pairs)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Concatenate all entries, in the order of the names."""
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])
