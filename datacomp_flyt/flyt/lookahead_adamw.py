"""AdamW and SGD as pure functions: θ⁺ = update(g) of FLYT's Eq. 2, and its pull-back.

    θ⁺ = step(θ, g, state)        v = pull_back(g, state, ∂L/∂θ⁺) = (∂θ⁺/∂g)^T ∂L/∂θ⁺ = ∂L/∂g

(Appendix A, the definition of v.) The update is elementwise, so ∂θ⁺/∂g is diagonal and v has a
closed form. Only `next_state` advances the state; the trainer calls it once for each step that it
keeps. FLYT's public code advances it in rejected steps too, and once for each downstream task.

Legend: θ parameters, θ⁺ stepped parameters, g gradient, m and s running means of g and g², t steps
done, lr learning rate, λ weight decay. All are dicts of tensors by parameter name, and tensors of
one name have one shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
"""Tensors by parameter name."""


@dataclass(frozen=True)
class OptimizerState:
    """State of an optimizer.

    Attributes:
        step: t, the number of steps done.
        first: m, by name.
        second: s, by name; empty for SGD.
    """

    step: int
    first: Tensors
    second: Tensors


class LookaheadOptimizer(Protocol):
    """An optimizer whose update can be pulled back."""

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """Return the state before the first step."""

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """Return θ⁺, the parameters after one step."""

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """Return (∂θ⁺/∂g)^T cotangents, which is ∂L/∂g for cotangents ∂L/∂θ⁺."""

    def next_state(self, grads: Tensors, state: OptimizerState) -> OptimizerState:
        """Return the state after the step."""


def decays(name: str, param: Tensor) -> bool:
    """Return whether weight decay applies to a parameter: not to gains, biases and scales.

    This is the rule of open_clip's trainer, which FLYT uses.
    """
    return param.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


@dataclass(frozen=True)
class LookaheadAdamW:
    """AdamW with decoupled weight decay (FLYT, Appendix C.1; the default eps is open_clip's).

        m⁺ = β1 m + (1 - β1) g          s⁺ = β2 s + (1 - β2) g²
        θ⁺ = (1 - lr λ) θ - lr (m⁺ / c1) / (sqrt(s⁺ / c2) + eps),    c = 1 - β^(t + 1)

    Where s⁺ = 0, both g and s are 0, as for the embedding of a token that has not occurred yet.
    There the square root has no derivative, and 0 is taken for it. This gives
    ∂θ⁺/∂g = -lr (1 - β1) / (c1 eps). For m = 0 this is exact, because the derivative is multiplied
    by m⁺ = 0. FLYT's public code does not update such entries and takes 0 for ∂θ⁺/∂g.

    Attributes:
        betas: β1 and β2.
        eps: see above.
        weight_decay: λ.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """Return moments of 0."""
        first = {name: torch.zeros_like(param) for name, param in params.items()}
        second = {name: torch.zeros_like(param) for name, param in params.items()}
        return OptimizerState(0, first, second)

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """Return θ⁺, differentiable by autograd in params, grads and the moments."""
        stepped = {}
        for name, param in params.items():
            mean, root = self._corrected(grads[name], name, state)
            decay = lr * self.weight_decay if decays(name, param) else 0.0
            stepped[name] = param * (1 - decay) - lr * mean / (root + self.eps)
        return stepped

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """Return (∂θ⁺/∂g)^T cotangents in closed form.

        With r = sqrt(s⁺ / c2), the terms in g² cancel and leave

            ∂θ⁺/∂g = -lr / c1 (r + eps)^-2
                     ((1 - β1) eps + ((1 - β1) β2 s - (1 - β2) β1 m g) / (c2 r))

        In the first step (m = s = 0) only the term with eps remains, and computing it as a
        difference of two large terms would lose it to rounding. Hence the closed form.
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
        """Return the moments after the step."""
        with torch.no_grad():
            moments = {name: self._moments(grad, name, state) for name, grad in grads.items()}
        first = {name: pair[0] for name, pair in moments.items()}
        second = {name: pair[1] for name, pair in moments.items()}
        return OptimizerState(state.step + 1, first, second)

    def _moments(self, grad: Tensor, name: str, state: OptimizerState) -> tuple[Tensor, Tensor]:
        """Compute m⁺ and s⁺."""
        beta1, beta2 = self.betas
        first = beta1 * state.first[name] + (1 - beta1) * grad
        return first, beta2 * state.second[name] + (1 - beta2) * grad**2

    def _corrections(self, state: OptimizerState) -> tuple[float, float]:
        """Compute c1 and c2."""
        return 1 - self.betas[0] ** (state.step + 1), 1 - self.betas[1] ** (state.step + 1)

    def _corrected(self, grad: Tensor, name: str, state: OptimizerState) -> tuple[Tensor, Tensor]:
        """Compute m⁺ / c1 and sqrt(s⁺ / c2)."""
        first, second = self._moments(grad, name, state)
        c1, c2 = self._corrections(state)
        zero = second == 0
        root = (second.masked_fill(zero, 1.0) / c2).sqrt().masked_fill(zero, 0.0)
        return first / c1, root


@dataclass(frozen=True)
class LookaheadSGD:
    """SGD with momentum μ and decoupled weight decay λ.

    m⁺ = μ m + g;  θ⁺ = (1 - lr λ) θ - lr m⁺
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """Return a momentum of 0."""
        return OptimizerState(0, {name: torch.zeros_like(p) for name, p in params.items()}, {})

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """Return θ⁺, differentiable by autograd in params, grads and momentum."""
        stepped = {}
        for name, param in params.items():
            decay = lr * self.weight_decay if decays(name, param) else 0.0
            momentum = self.momentum * state.first[name] + grads[name]
            stepped[name] = param * (1 - decay) - lr * momentum
        return stepped

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """Return (∂θ⁺/∂g)^T cotangents, which is -lr cotangents."""
        return {name: -lr * cotangent for name, cotangent in cotangents.items()}

    def next_state(self, grads: Tensors, state: OptimizerState) -> OptimizerState:
        """Return the momentum after the step."""
        with torch.no_grad():
            first = {name: self.momentum * state.first[name] + g for name, g in grads.items()}
        return OptimizerState(state.step + 1, first, {})


@dataclass(frozen=True)
class ClipGradNorm:
    """Clip the global norm of the gradient to c, then step by another optimizer.

    The clipped gradient is g c / |g| if |g| > c. Clipping is part of the update, so the pull-back
    differentiates it.
    """

    optimizer: LookaheadOptimizer
    max_norm: float

    def init(self, params: Mapping[str, Tensor]) -> OptimizerState:
        """Return the state of the other optimizer before the first step."""
        return self.optimizer.init(params)

    def step(
        self, params: Mapping[str, Tensor], grads: Tensors, state: OptimizerState, lr: float
    ) -> Tensors:
        """Return θ⁺ for the clipped gradient."""
        return self.optimizer.step(params, self._clip(grads), state, lr)

    def pull_back(
        self, grads: Tensors, state: OptimizerState, lr: float, cotangents: Tensors
    ) -> Tensors:
        """Return (∂θ⁺/∂g)^T cotangents.

        If the gradient is clipped, this is c / |g| (I - g g^T / |g|²) times the pull-back of the
        other optimizer.
        """
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
        """Return the state of the other optimizer after the clipped gradient."""
        return self.optimizer.next_state(self._clip(grads), state)

    def _clip(self, grads: Tensors) -> Tensors:
        scale = torch.clamp(self.max_norm / norm(grads), max=1.0)
        return {name: grad * scale for name, grad in grads.items()}


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Compute the Euclidean norm [] of all entries of all tensors."""
    total: Tensor = torch.linalg.vector_norm(torch.stack([t.norm() for t in tensors.values()]))
    return total
