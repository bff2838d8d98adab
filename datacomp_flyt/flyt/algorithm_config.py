"""Parameters of FLYT's Algorithm 1, and the optimizer of its reference model."""

from __future__ import annotations

from dataclasses import dataclass

from datacomp_flyt.flyt.lookahead_adamw import (
    ClipGradNorm,
    LookaheadAdamW,
    LookaheadOptimizer,
    LookaheadSGD,
)
from datacomp_flyt.flyt.precision import Tangent


@dataclass(frozen=True)
class AlgorithmConfig:
    """The options that Algorithm 1 depends on; they are described in `TrainingConfig`."""

    upstream_batch_size: int
    downstream_batch_size: int
    num_steps: int
    warmup: int
    schedule: str
    reference_lr: float
    scoring_lr: float
    optimizer: str
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    scoring_weight_decay: float
    grad_clip_norm: float | None
    downstream_loss: str
    precision: str
    tangent: Tangent | None
    difference_step: float | None
    micro_batch_size: int | None
    freeze_reference: bool
    train_extractor: bool


def reference_optimizer(config: AlgorithmConfig) -> LookaheadOptimizer:
    """Make the optimizer of the reference model, with clipping if `grad_clip_norm` is set."""
    optimizer: LookaheadOptimizer
    if config.optimizer == "sgd":
        optimizer = LookaheadSGD(config.betas[0], config.weight_decay)  # beta1 is its momentum
    else:
        optimizer = LookaheadAdamW(config.betas, config.eps, config.weight_decay)
    if config.grad_clip_norm is not None:
        optimizer = ClipGradNorm(optimizer, config.grad_clip_norm)
    return optimizer
