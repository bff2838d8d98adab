"""Gradient of the downstream loss with respect to the upstream weights (FLYT, Appendix A).

The reference model f_θ takes one step on the weighted CLIP loss, Eq. 3, and the downstream loss of
the stepped model, Eq. 2, is differentiated with respect to the weights w of that step:

    L_up = ℓ_WCL(f_θ(z_1:B), w)             stage 1, `_upstream_gradient`
    g(w) = ∇_θ L_up
    θ⁺   = update(g)                        stage 2, `LookaheadOptimizer.step`
    L_down = ℓ_DS(f_θ⁺(ẑ_1:B'))             stage 3 begins (Eq. 2)
    v    = ∇_g L_down                       `_downstream_gradient` gives ∇_θ⁺ L_down, and
                                            `LookaheadOptimizer.pull_back` turns it into v
    ∇_w L_down = ∂<g, v> / ∂w               stage 4, `_gradient_along`

Write f_i for the image and text embedding of upstream example i together [2D], J_i = ∂f_i/∂θ
[2D, |θ|], v [|θ|] and u_i = J_i v [2D]. Then

    <g, v> = sum_i (∂ℓ_WCL(f_1:B, w) / ∂f_i) u_i        (a row [1, 2D] times a column [2D, 1]).

The paper obtains u_i as the derivative of f_{θ + ηv}(z_i) with respect to η at η = 0. In stage 4 v
is held constant, so neither f_i nor u_i depends on w. `Towers.tangent` computes u_i once, without a
graph. Only the loss of the [B, B] similarities is differentiated twice, once by the embeddings and
once by w, and this has a closed form (`weight_gradient_along`). No second backward pass goes
through the towers.

Cost: one forward and backward pass of each batch, and 1, 2 or about 3 forward passes of the
upstream batch for u (`one_sided`, `central`, `exact`): 2.0 to 2.7 plain CLIP steps (docs/train.md).

The paper leaves τ's entry out of <g, v>. Its downstream losses have a temperature of their own, so
L_down does not depend on τ⁺. Without gradient clipping the paper's sum is exact, since an
elementwise update gives v = 0 at τ. With clipping it is not, since the clipped gradient depends on
every entry of g. This module keeps τ's entry, which is right in both cases.

Legend: B upstream batch, b rows of it on this rank, B' downstream batch, b' rows of it on this
rank, K downstream classes, k class prompts on this rank, L tokens, D embedding, θ parameters of the
reference model, w weights of the upstream batch, τ logit scale (exponentiated, the multiplier of
the cosines), h the factor of v in finite differences.
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

_BLOCK = 1024  # rows of the similarity matrix that are held at once

LossOfRows = Callable[[Tensor, Tensor, Tensor, slice], Tensor]
"""The part of a loss that some rows contribute.

Arguments: image features and text features of all ranks, logit scale, rows. If the rows are cut
into parts, the losses of the parts add up to the loss of the batch.
"""


@dataclass(frozen=True)
class Downstream:
    """A downstream batch and its loss ℓ_DS.

    Attributes:
        images: images of this rank [b', 3, H, W].
        texts: texts of this rank: class prompts [k, L], or captions [b', L].
        num_images, num_texts: number of images (B') and texts (K or B') on all ranks together.
        loss: ℓ_DS, a function of the features of all ranks.
        logit_scale: τ_DS [], the logit scale of the loss, which is not a parameter of the reference
            model.
    """

    images: Tensor
    texts: Tensor
    num_images: int
    num_texts: int
    loss: LossOfRows
    logit_scale: Tensor


@dataclass(frozen=True)
class Metagradient:
    """The result of `weight_metagradient`.

    Attributes:
        weight_gradient: ∂L_down/∂w for this rank's rows [b].
        params: θ⁺, by name; the same on all ranks.
        grads: g, by name; the argument of the optimizer's `next_state` if the step is kept.
        upstream_loss: L_up at θ [].
        downstream_loss: L_down at θ⁺ [].
        logit_scale_gradient: ∂L_down/∂τ_DS [].
        finite: true if g, v, both losses and ∂L_down/∂w are finite; the same on all ranks.
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
    *,
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
    """Compute ∂L_down/∂w and the stepped reference model (FLYT, Appendix A).

    The arguments of this function are not modified. To keep the step, replace θ by `params` of the
    result and the state by `optimizer.next_state(grads, state)`. Memory beside θ, the optimizer's
    state and g: at most three tensors for each parameter (θ⁺, v, and first ∇_θ⁺ L_down, later θ +
        hv
    or a scaled v), four with gradient clipping.

    Args:
        towers: the reference model.
        params: θ, by name.
        optimizer, state, lr: the update rule, its state, and its learning rate.
        images, texts: upstream rows of this rank [b, 3, H, W], [b, L]; b is the same on all ranks.
        log_weights: log w of the rows of all ranks [B], in rank order; the weights sum to 1.
        downstream: the downstream batch and its loss.
        tangent: the method by which u_i = J_i v is computed; see `Towers.tangent`.
        difference_step: the relative length |hv| / |θ| of the movement of finite differences; the
            default depends on the dtype.

    Returns:
        See `Metagradient`. If g or v is not finite, the later stages are skipped.
    """
    upstream = _upstream_gradient(towers, params, images, texts, log_weights)
    grads, local_rows = upstream.grads, rows_of_rank(len(log_weights))
    result = _result_without_step(upstream, params, log_weights[local_rows])
    if not _is_finite(grads, upstream.loss):
        return result
    stepped = {k: p.detach() for k, p in optimizer.step(params, grads, state, lr).items()}
    downstream_loss, cotangents, scale_gradient = _downstream_gradient(towers, stepped, downstream)
    result = replace(result, params=stepped, downstream_loss=downstream_loss)
    direction = optimizer.pull_back(grads, state, lr, cotangents)
    del cotangents  # as large as θ
    if not _is_finite(direction, downstream_loss):
        return result
    gradient = _gradient_along(
        direction, upstream, towers, params, images, texts, log_weights,
        tangent=tangent, difference_step=difference_step,
    )  # fmt: skip
    return replace(
        result,
        weight_gradient=gradient[local_rows],
        logit_scale_gradient=scale_gradient,
        finite=bool(gradient.isfinite().all()),
    )


@dataclass(frozen=True)
class _Upstream:
    """Stage 1.

    Attributes:
        loss: L_up [].
        grads: g, by name.
        local_features: image and text embeddings f_i of this rank [b, D].
        features: image and text embeddings f_i of all ranks [B, D].
        logit_scale: τ [], without a graph.
    """

    loss: Tensor
    grads: Tensors
    local_features: Features
    features: Features
    logit_scale: Tensor


def _upstream_gradient(
    towers: Towers, params: Tensors, images: Tensor, texts: Tensor, log_weights: Tensor
) -> _Upstream:
    """Compute stage 1: L_up and its gradient g with respect to θ, the same on all ranks."""
    num_rows = len(log_weights)
    embedding = towers.embed(params, images, texts)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    scale = towers.logit_scale(leaves)

    def loss_of_rows(images: Tensor, texts: Tensor, scale: Tensor, rows: slice) -> Tensor:
        return weighted_clip_loss_of_rows(images, texts, scale, log_weights, rows)

    loss, features, feature_gradients, scale_gradient = _loss_and_gradients(
        embedding, (num_rows, num_rows), scale.detach(), loss_of_rows
    )
    grads = embedding.pull_back(feature_gradients)
    _add_logit_scale_gradient(scale, leaves, scale_gradient, grads)
    sum_over_ranks([*grads.values(), loss])
    return _Upstream(loss, grads, embedding.features, features, scale.detach())


def _result_without_step(
    upstream: _Upstream, params: Tensors, local_log_weights: Tensor
) -> Metagradient:
    """Make the result for a step that stops after stage 1: NaN for all that is not known yet."""
    return Metagradient(
        weight_gradient=torch.full_like(local_log_weights, torch.nan),
        params=params,
        grads=upstream.grads,
        upstream_loss=upstream.loss,
        downstream_loss=torch.full_like(upstream.loss, torch.nan),
        logit_scale_gradient=torch.full_like(upstream.loss, torch.nan),
        finite=False,
    )


def _downstream_gradient(
    towers: Towers, params: Tensors, downstream: Downstream
) -> tuple[Tensor, Tensors, Tensor]:
    """Compute L_down at θ⁺, and its gradients with respect to θ⁺ and τ_DS, on all ranks alike."""
    embedding = towers.embed(params, downstream.images, downstream.texts)
    loss, _, feature_gradients, scale_gradient = _loss_and_gradients(
        embedding,
        (downstream.num_images, downstream.num_texts),
        downstream.logit_scale,
        downstream.loss,
    )
    grads = embedding.pull_back(feature_gradients)
    sum_over_ranks([*grads.values(), loss, scale_gradient])
    return loss, grads, scale_gradient


def _gradient_along(
    direction: Tensors,
    upstream: _Upstream,
    towers: Towers,
    params: Tensors,
    images: Tensor,
    texts: Tensor,
    log_weights: Tensor,
    *,
    tangent: Tangent,
    difference_step: float | None,
) -> Tensor:
    """Compute stage 4: ∂<g, v>/∂w for all rows [B]; `direction` is v, and may be modified."""
    num_rows = len(log_weights)
    if tangent != "exact":
        _drop_unused_entries(direction, upstream.grads)
    dtype = next(iter(params.values())).dtype
    step = difference_step or DIFFERENCE_STEPS.get((tangent, dtype), torch.nan)
    image_tangents, text_tangents = towers.tangent(
        params, direction, images, texts, upstream.local_features, tangent, step
    )
    tangents = (
        gather_rows(image_tangents, num_rows),
        gather_rows(text_tangents, num_rows),
        towers.logit_scale_tangent(params, direction),
    )
    gradient = weight_gradient_along(
        (*upstream.features, upstream.logit_scale), tangents, log_weights, rows_of_rank(num_rows)
    )
    sum_over_ranks([gradient])
    return gradient


def _loss_and_gradients(
    embedding: Embedding,
    num_features: tuple[int, int],
    logit_scale: Tensor,
    loss_of_rows: LossOfRows,
) -> tuple[Tensor, Features, Features, Tensor]:
    """Compute a loss of the features of all ranks, in blocks of this rank's rows.

    Args:
        embedding: image and text features of this rank.
        num_features: number of image and text features on all ranks together.
        logit_scale: logit scale of the loss [].
        loss_of_rows: the loss.

    Returns:
        loss: this rank's part of the loss [].
        features: image and text features of all ranks.
        feature gradients: the gradient of the whole loss in the features of this rank.
        scale gradient: this rank's part of the gradient in the logit scale [].
    """
    images, texts = (
        gather_rows(local, num_rows).detach().requires_grad_()
        for local, num_rows in zip(embedding.features, num_features, strict=True)
    )
    scale = logit_scale.detach().clone().requires_grad_()
    leaves = (images, texts, scale)
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    loss = torch.zeros_like(scale)
    local_rows = rows_of_rank(num_features[0])
    for start in range(local_rows.start, local_rows.stop, _BLOCK):
        block = slice(start, min(start + _BLOCK, local_rows.stop))
        part = loss_of_rows(images, texts, scale, block)
        loss += part.detach()
        gradients = torch.autograd.grad(part, leaves, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total += gradient
    sum_over_ranks(totals[:2])
    local = (totals[0][local_rows], totals[1][rows_of_rank(num_features[1])])
    return loss, (images.detach(), texts.detach()), local, totals[2]


def _add_logit_scale_gradient(
    scale: Tensor, leaves: Tensors, gradient: Tensor, grads: Tensors
) -> None:
    """Add the gradient with respect to the parameters that τ depends on to `grads`."""
    if not scale.requires_grad:  # its parameter is frozen
        return
    pulled = torch.autograd.grad(scale, list(leaves.values()), gradient, allow_unused=True)
    for name, value in zip(leaves, pulled, strict=True):
        if value is not None:
            grads[name] += value


def _drop_unused_entries(direction: Tensors, grads: Tensors) -> None:
    """Set v to 0 where g is 0, before finite differences are taken.

    g is 0 for the embeddings of tokens that do not occur in the upstream batch. No upstream
    embedding depends on them, so u_i is the same with v = 0 there. But v itself can be large there:
    the tokens may occur in the downstream batch, and Adam divides by eps where its moments are 0.
    Finite differences move θ by hv, where h is chosen so that |hv| / |θ| is `difference_step`. A
    large |v| would make h, and with it the movement of all other parameters, too small for the
    precision of θ.
    """
    for name, grad in grads.items():
        direction[name].masked_fill_(grad == 0, 0.0)


def _is_finite(tensors: Tensors, loss: Tensor) -> bool:
    return bool((norm(tensors) + loss).isfinite())
