"""The weighted CLIP loss (FLYT, Eq. 3), in log space, and the one derivative of it that FLYT needs.

Legend: B upstream batch, b rows of it at hand, D embedding, τ logit scale (exponentiated, as
open_clip's ClipLoss takes it), w weights; a_ij = τ <u_i, v_j>; p_ij = w_j exp(a_ij) / Z_i with
Z_i = sum_j w_j exp(a_ij).

Every function sums over some rows of the batch, an image row and a text row each; the sum over a
partition of the rows, on one rank or on many, is the loss of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ALL = slice(None)
_BLOCK = 1024  # rows of the [B, B] logits that `weight_gradient_along` holds at once
_LARGEST_EXPONENT = 80.0  # exp of it is a float32; beyond lie only weights below 1e-34


def weighted_clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, log_weights: Tensor
) -> Tensor:
    """Weighted CLIP loss, Eq. 3: a weight counts both as a positive and as a negative.

    Uniform weights 1/B give open_clip's ClipLoss (a mean over the batch; the paper's Eq. 1 is the
    sum); weight 0 (log weight -inf) gives the loss of the batch without that example. Computed in
    float32 at least, whatever the features' type or autocast.

    Args:
        image_features: unit rows [B, D].
        text_features: unit rows [B, D].
        logit_scale: τ [].
        log_weights: log w [B], by rights those of weights that add up to 1; -inf for weight 0.

    Returns:
        The loss [], differentiable in all four.
    """
    return weighted_clip_loss_of_rows(image_features, text_features, logit_scale, log_weights, _ALL)


def weighted_clip_loss_of_rows(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    log_weights: Tensor,
    rows: slice,
) -> Tensor:
    """The part of `weighted_clip_loss` in which `rows` of the batch are the positives."""
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = full_precision(image_features), full_precision(text_features)
        log_weights = full_precision(log_weights)
        image_loss = _contrast(images, texts, logit_scale, log_weights, rows)
        text_loss = _contrast(texts, images, logit_scale, log_weights, rows)
        return (image_loss + text_loss) / 2


def weight_gradient_along(
    features: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor, Tensor, Tensor],
    log_weights: Tensor,
    rows: slice = _ALL,
) -> Tensor:
    """d/dw of the derivative of the weighted CLIP loss along a direction of the features.

    With a' the derivative of a, E_i the mean of a'_i under p_i, the directional derivative is
    sum_i w_i (E_i - a'_ii) / 2 plus the same with images and texts exchanged, and

        d/dw_k = (E_k - a'_kk + sum_i w_i exp(a_ik) / Z_i (a'_ik - E_i)) / 2 + ...

    which needs no graph and is finite where w_k = 0.

    Args:
        features: image features [B, D], text features [B, D], τ [].
        tangents: their derivatives, of the same shapes.
        log_weights: [B].
        rows: the sum over i (and the term of k itself) is taken over these rows.

    Returns:
        [B]; over a partition of the rows they add up to the whole derivative.
    """
    images, texts, logit_scale = (full_precision(value) for value in features)
    image_tangents, text_tangents, scale_tangent = (full_precision(value) for value in tangents)
    log_weights = full_precision(log_weights)
    gradient = torch.zeros_like(log_weights)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        start, stop, _ = rows.indices(len(images))
        for first in range(start, stop, _BLOCK):
            block = slice(first, min(first + _BLOCK, stop))
            for u, v, du, dv in (
                (images, texts, image_tangents, text_tangents),
                (texts, images, text_tangents, image_tangents),
            ):
                cosines = u[block] @ v.T
                logits = logit_scale * cosines
                slopes = logit_scale * (du[block] @ v.T + u[block] @ dv.T) + scale_tangent * cosines
                gradient += _weight_gradient(logits, slopes, log_weights, block)
    return gradient / 2


def full_precision(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _contrast(
    u: Tensor, v: Tensor, logit_scale: Tensor, log_weights: Tensor, rows: slice
) -> Tensor:
    """sum_i -w_i log(w_i exp(a_ii) / Z_i) over the rows."""
    logits = logit_scale * u[rows] @ v.T
    log_normalizers = torch.logsumexp(logits + log_weights, dim=1)
    own = log_weights[rows]
    finite = own.masked_fill(own == -torch.inf, 0.0)  # else weight 0 times log 0 is NaN
    losses = log_normalizers - _positives(logits, rows) - finite
    return own.exp() @ losses


def _weight_gradient(logits: Tensor, slopes: Tensor, log_weights: Tensor, rows: slice) -> Tensor:
    weighted = logits + log_weights
    log_normalizers = torch.logsumexp(weighted, dim=1, keepdim=True)
    means = ((weighted - log_normalizers).exp() * slopes).sum(1, keepdim=True)
    relative = (logits - log_normalizers).clamp(max=_LARGEST_EXPONENT).exp()
    gradient = log_weights[rows].exp() @ (relative * (slopes - means))
    gradient[rows] += means[:, 0] - _positives(slopes, rows)
    return gradient


def _positives(matrix: Tensor, rows: slice) -> Tensor:
    """Of rows [b, B] of a square matrix, the entries on its diagonal [b]."""
    start, _, _ = rows.indices(matrix.shape[1])
    return matrix.diagonal(offset=start)
