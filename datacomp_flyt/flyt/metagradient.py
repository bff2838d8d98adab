"""FLYT's gradient: how the downstream loss after one step depends on the upstream weights.

Appendix A of the paper, stage by stage. With f_i the embeddings of upstream example i,

    g(w) = sum_i (∂ℓ_WCL / ∂f_i) ∇_θ f_i          the weighted loss's gradient
    θ+   = update(g)                               one look-ahead step
    v    = ∇_g ℓ_DS(f_θ+(ẑ))                       the downstream gradient, pulled back through it
    ∇_w L_down = ∂<g, v> / ∂w = ∂/∂w sum_i (∂ℓ_WCL / ∂f_i) (J_i v)

The towers' tangent u_i = J_i v does not depend on w. So it is taken once, with no graph, and what
is differentiated twice is the loss of B x B similarities alone. The logit scale, which the paper
leaves out of this sum (its downstream losses have temperatures of their own), is in it like any
parameter.

Legend: B upstream batch, b its rows on this rank, B' downstream batch, D embedding, θ parameters of
the reference model, w weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datacomp_flyt.distributed.collectives import gather_rows, rows_of_rank, sum_over_ranks
from datacomp_flyt.flyt.lookahead_adamw import LookaheadOptimizer, OptimizerState, Tensors, norm
from datacomp_flyt.flyt.precision import DIFFERENCE_STEPS, Tangent
from datacomp_flyt.flyt.towers import Embedding, Features, Towers
from datacomp_flyt.flyt.weighted_loss import (
    weight_gradient_along,
    weighted_clip_loss_of_rows,
)

_BLOCK = 1024  # rows of similarities that a loss holds at once

LossOfRows = Callable[[Tensor, Tensor, Tensor, slice], Tensor]
"""From all image features, all text features, a logit scale and some rows to their part of a loss.

The parts of a partition of the rows add up to the loss of the batch.
"""


@dataclass(frozen=True)
class Downstream:
    """A downstream batch and its loss.

    Attributes:
        images: this rank's rows [b', 3, H, W] of B'.
        texts: this rank's rows [k, L] of K class prompts, or of B' captions.
        number_of_images, number_of_texts: B' and K on all ranks together.
        loss: of the features of all ranks.
        logit_scale: τ_DS []; not the reference model's.
    """

    images: Tensor
    texts: Tensor
    number_of_images: int
    number_of_texts: int
    loss: LossOfRows
    logit_scale: Tensor


@dataclass(frozen=True)
class Metagradient:
    """What one FLYT step finds.

    Attributes:
        weight_gradient: ∂L_down/∂w of this rank's rows [b].
        params: θ+, by name; the same on all ranks.
        grads: g, by name: what `next_state` of the optimizer wants if the step is kept.
        upstream_loss, downstream_loss: L_up at θ and L_down at θ+ [].
        logit_scale_gradient: ∂L_down/∂τ_DS [].
        finite: whether all of it is; on all ranks or on none.
    """

    weight_gradient: Tensor
    params: Tensors
    grads: Tensors
    upstream_loss: Tensor
    downstream_loss: Tensor
    logit_scale_gradient: Tensor
    finite: bool


def weight_metagradient(
    towers: Towers,
    params: Tensors,
    optimizer: LookaheadOptimizer,
    state: OptimizerState,
    lr: float,
    images: Tensor,
    texts: Tensor,
    log_weights: Tensor,
    downstream: Downstream,
    tangent: Tangent = "exact",
    difference_step: float | None = None,
) -> Metagradient:
    """∂L_down/∂w and the stepped reference model (Appendix A).

    Nothing given is changed; a step is kept by taking on `params` and
    `optimizer.next_state(grads, state)`. Beside θ, the state and g it holds two sets of numbers as
    large as θ (θ+ and v), three while it takes differences.

    Args:
        towers: the reference model.
        params: θ, by name.
        optimizer, state, lr: the update.
        images, texts: this rank's upstream rows [b, 3, H, W], [b, L]; as many on each rank.
        log_weights: log w of all ranks' rows [B], in the order of ranks, adding up to 1.
        downstream: the downstream batch and loss.
        tangent: how J_i v is found; see `Towers.tangent`.
        difference_step: |hv| / |θ| of the differences; by default one for the parameters' type.

    Returns:
        See `Metagradient`. Where g or v is not finite the later stages are left out.
    """
    number = len(log_weights)
    upstream = towers.embed(params, images, texts)
    leaf = {name: value.detach().requires_grad_() for name, value in params.items()}
    scale = towers.logit_scale(leaf)

    def upstream_loss(images: Tensor, texts: Tensor, scale: Tensor, rows: slice) -> Tensor:
        return weighted_clip_loss_of_rows(images, texts, scale, log_weights, rows)

    loss, features, gradients, scale_gradient = _loss_and_gradients(
        upstream, (number, number), scale.detach(), upstream_loss
    )
    grads = upstream.pull_back(gradients)
    _add_gradient_of(scale, leaf, scale_gradient, grads)
    sum_over_ranks([*grads.values(), loss])
    none = Metagradient(
        torch.full_like(log_weights[rows_of_rank(number)], torch.nan),
        params, grads, loss, torch.full_like(loss, torch.nan), torch.zeros_like(loss), False,
    )  # fmt: skip
    if not _finite(grads, loss):
        return none

    stepped = {k: p.detach() for k, p in optimizer.step(params, grads, state, lr).items()}
    stepped_loss, cotangents, downstream_scale_gradient = _downstream_gradient(
        towers, stepped, downstream
    )
    none = replace(none, params=stepped, downstream_loss=stepped_loss)
    direction = optimizer.pull_back(grads, state, lr, cotangents)
    del cotangents
    if not _finite(direction, stepped_loss):
        return none

    if tangent != "exact":
        _drop_idle(direction, grads)
    dtype = next(iter(params.values())).dtype
    step = difference_step or DIFFERENCE_STEPS.get((tangent, dtype), torch.nan)
    local_tangents = towers.tangent(
        params, direction, images, texts, upstream.features, tangent, step
    )
    tangents = (
        gather_rows(local_tangents[0], number),
        gather_rows(local_tangents[1], number),
        towers.logit_scale_tangent(params, direction),
    )
    weight_gradient = weight_gradient_along(
        (*features, scale.detach()), tangents, log_weights, rows_of_rank(number)
    )
    sum_over_ranks([weight_gradient])
    return Metagradient(
        weight_gradient[rows_of_rank(number)],
        stepped,
        grads,
        loss,
        stepped_loss,
        downstream_scale_gradient,
        bool(weight_gradient.isfinite().all()),
    )


def _downstream_gradient(
    towers: Towers, params: Tensors, downstream: Downstream
) -> tuple[Tensor, Tensors, Tensor]:
    """L_down at θ+, its gradient in θ+ and that in τ_DS; the same on all ranks."""
    embedding = towers.embed(params, downstream.images, downstream.texts)
    numbers = (downstream.number_of_images, downstream.number_of_texts)
    loss, _, gradients, scale_gradient = _loss_and_gradients(
        embedding, numbers, downstream.logit_scale, downstream.loss
    )
    grads = embedding.pull_back(gradients)
    sum_over_ranks([*grads.values(), loss, scale_gradient])
    return loss, grads, scale_gradient


def _loss_and_gradients(
    embedding: Embedding, numbers: tuple[int, int], logit_scale: Tensor, loss_of_rows: LossOfRows
) -> tuple[Tensor, Features, Features, Tensor]:
    """A loss of all ranks' features, by blocks of this rank's rows.

    Returns:
        This rank's part of the loss []; the features of all ranks; the loss's gradients in the
        features of this rank (of the whole loss); this rank's part of the gradient in the scale [].
    """
    images, texts = (
        gather_rows(local, number).detach().requires_grad_()
        for local, number in zip(embedding.features, numbers, strict=True)
    )
    scale = logit_scale.detach().clone().requires_grad_()
    leaves = (images, texts, scale)
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    loss = torch.zeros_like(scale)
    share = rows_of_rank(numbers[0])
    for start in range(share.start, share.stop, _BLOCK):
        part = loss_of_rows(images, texts, scale, slice(start, min(start + _BLOCK, share.stop)))
        loss += part.detach()
        gradients = torch.autograd.grad(part, leaves, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total += gradient
    sum_over_ranks(totals[:2])
    local = (totals[0][rows_of_rank(numbers[0])], totals[1][rows_of_rank(numbers[1])])
    return loss, (images.detach(), texts.detach()), local, totals[2]


def _add_gradient_of(scale: Tensor, leaves: Tensors, gradient: Tensor, grads: Tensors) -> None:
    """Add to `grads` what the loss's gradient in τ makes of the parameters behind τ."""
    if not scale.requires_grad:  # it is frozen
        return
    slopes = torch.autograd.grad(scale, list(leaves.values()), gradient, allow_unused=True)
    for name, slope in zip(leaves, slopes, strict=True):
        if slope is not None:
            grads[name] += slope


def _drop_idle(direction: Tensors, grads: Tensors) -> None:
    """Set v to 0 where g is 0: no upstream embedding depends on such an entry.

    They are rows of tokens that the batch lacks. Exact differentiation multiplies them by nothing;
    but v can be large there (1 / eps of Adam), and would dictate how small the differences get.
    """
    for name, grad in grads.items():
        direction[name].masked_fill_(grad == 0, 0.0)


def _finite(tensors: Tensors, loss: Tensor) -> bool:
    return bool((norm(tensors) + loss).isfinite())
