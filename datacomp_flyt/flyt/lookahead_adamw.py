"""AdamW and SGD as pure functions: the step that FLYT looks ahead by, and its pull-back.

    θ+ = step(θ, g, state)        v = pull_back(g, state, dL/dθ+) = dL/dg

The state changes only by `next_state`, which the trainer calls once for each step that it keeps;
in the public code it also advances in steps that are thrown away, and once more for each
downstream task. Every method goes tensor by tensor, and `step` can be differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
"""By parameter name."""


@dataclass(frozen=True)
class OptimizerState:
    """Steps done, and running means of the gradient and (AdamW) of its square, by name."""

    step: int
    first: Tensors
    second: Tensors


class LookaheadOptimizer(Protocol):
    """What the metagradient asks of an optimizer."""

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """The state before the first step."""

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """θ+: the parameters after one step."""

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """(∂θ+/∂g)^T cotangents: dL/dg out of dL/dθ+."""

    def next_state(self, grads: Tensors, state: OptimizerState) -> OptimizerState:
        """The state after the step."""


def decays(name: str, param: Tensor) -> bool:
    """Whether open_clip, and so FLYT, applies weight decay: not to gains, biases and scales."""
    return param.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


@dataclass(frozen=True)
class LookaheadAdamW:
    """AdamW with decoupled weight decay (FLYT, C.1; eps is open_clip's).

        m+ = β1 m + (1 - β1) g          s+ = β2 s + (1 - β2) g²
        θ+ = (1 - lr λ) θ - lr (m+ / c1) / (sqrt(s+ / c2) + eps),    c = 1 - β^(t + 1)

    Where s+ = 0 (so g = 0 and s = 0: an embedding row of a token not seen yet), the root has no
    derivative; it is taken as 0. That makes dθ+/dg = -lr (1 - β1) / (c1 eps) there, which is exact
    for m = 0. The public code leaves such entries where they are and calls the derivative 0.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """Zero moments."""
        first = {name: torch.zeros_like(param) for name, param in params.items()}
        second = {name: torch.zeros_like(param) for name, param in params.items()}
        return OptimizerState(0, first, second)

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """θ+, differentiable in params, grads and the moments."""
        stepped = {}
        for name, param in params.items():
            mean, root = self._corrected(grads[name], name, state)
            decay = lr * self.weight_decay if decays(name, param) else 0.0
            stepped[name] = param * (1 - decay) - lr * mean / (root + self.eps)
        return stepped

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """(∂θ+/∂g)^T cotangents, in closed form.

        With r = sqrt(s+ / c2), the terms in g² cancel and leave

            dθ+/dg = -lr / c1 (r + eps)^-2
                     ((1 - β1) eps + ((1 - β1) β2 s - (1 - β2) β1 m g) / (c2 r))

        so that a first step (m = s = 0), whose slope is eps alone, is not lost to rounding.
        """
        (beta1, beta2), (c1, c2) = self.betas, self._corrections(state)
        pulled = {}
        with torch.no_grad():
            for name, cotangent in cotangents.items():
                _, root = self._corrected(grads[name], name, state)
                slope = (grads[name] * state.first[name]).mul_(-(1 - beta2) * beta1)
                slope.add_(state.second[name], alpha=(1 - beta1) * beta2)
                slope.div_(root).div_(c2).masked_fill_(root == 0, 0.0).add_((1 - beta1) * self.eps)
                slope.div_(root.add_(self.eps).square_())
                pulled[name] = slope.mul_(cotangent).mul_(-lr / c1)
        return pulled

    def next_state(self, grads: Tensors, state: OptimizerState) -> OptimizerState:
        """The moments after the step."""
        with torch.no_grad():
            moments = {name: self._moments(grad, name, state) for name, grad in grads.items()}
        first = {name: pair[0] for name, pair in moments.items()}
        second = {name: pair[1] for name, pair in moments.items()}
        return OptimizerState(state.step + 1, first, second)

    def _moments(self, grad: Tensor, name: str, state: OptimizerState) -> tuple[Tensor, Tensor]:
        beta1, beta2 = self.betas
        first = beta1 * state.first[name] + (1 - beta1) * grad
        return first, beta2 * state.second[name] + (1 - beta2) * grad**2

    def _corrections(self, state: OptimizerState) -> tuple[float, float]:
        return 1 - self.betas[0] ** (state.step + 1), 1 - self.betas[1] ** (state.step + 1)

    def _corrected(self, grad: Tensor, name: str, state: OptimizerState) -> tuple[Tensor, Tensor]:
        """m+ / c1 and sqrt(s+ / c2)."""
        first, second = self._moments(grad, name, state)
        c1, c2 = self._corrections(state)
        zero = second == 0
        root = (second.masked_fill(zero, 1.0) / c2).sqrt().masked_fill(zero, 0.0)
        return first / c1, root


@dataclass(frozen=True)
class LookaheadSGD:
    """SGD with momentum: m+ = μ m + g; θ+ = (1 - lr λ) θ - lr m+ (decoupled decay, as AdamW's)."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """Zero momentum."""
        return OptimizerState(0, {name: torch.zeros_like(p) for name, p in params.items()}, {})

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """θ+, differentiable in params, grads and momentum."""
        stepped = {}
        for name, param in params.items():
            decay = lr * self.weight_decay if decays(name, param) else 0.0
            momentum = self.momentum * state.first[name] + grads[name]
            stepped[name] = param * (1 - decay) - lr * momentum
        return stepped

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """(∂θ+/∂g)^T cotangents = -lr cotangents."""
        return {name: -lr * cotangent for name, cotangent in cotangents.items()}

    def next_state(self, grads: Tensors, state: OptimizerState) -> OptimizerState:
        """The momentum after the step."""
        with torch.no_grad():
            first = {name: self.momentum * state.first[name] + g for name, g in grads.items()}
        return OptimizerState(state.step + 1, first, {})


@dataclass(frozen=True)
class ClipGradNorm:
    """Another optimizer behind clipping of the gradient's global norm, with its exact pull-back.

    Clipping, g c / |g| where |g| > c, is part of the update, so it is part of v too.
    """

    optimizer: LookaheadOptimizer
    max_norm: float

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """The other's."""
        return self.optimizer.init(params)

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """θ+ from the clipped gradient."""
        return self.optimizer.step(params, self._clip(grads), state, lr)

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """(∂θ+/∂g)^T cotangents: c / |g| (I - g g^T / |g|²) times the other's, where it clips."""
        pulled = self.optimizer.pull_back(self._clip(grads), state, lr, cotangents)
        size = norm(grads)
        if size <= self.max_norm:
            return pulled
        along = torch.stack([(pulled[name] * grads[name]).sum() for name in pulled]).sum()
        return {
            name: self.max_norm / size * (pulled[name] - grads[name] * (along / size**2))
            for name in pulled
        }

    def next_state(self, grads: Tensors, state: OptimizerState) -> OptimizerState:
        """The other's, after the clipped gradient."""
        return self.optimizer.next_state(self._clip(grads), state)

    def _clip(self, grads: Tensors) -> Tensors:
        scale = torch.clamp(self.max_norm / norm(grads), max=1.0)
        return {name: grad * scale for name, grad in grads.items()}


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm [] of all entries together."""
    total: Tensor = torch.linalg.vector_norm(torch.stack([t.norm() for t in tensors.values()]))
    return total
