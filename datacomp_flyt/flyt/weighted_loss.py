"""The weighted CLIP loss (FLYT, Eq. 3), in log space, and the derivative of it that FLYT needs.

Each function sums over some rows of the batch; row i stands for image i and text i. If the rows are
cut into parts, on one rank or on many, the results of the parts add up to the result of the batch.

Legend: B upstream batch, b rows of it, D embedding, x_i and y_j embeddings of the two towers, in
either order, τ logit scale (exponentiated, as open_clip's ClipLoss takes it), w weights,
a_ij = τ <x_i, y_j> logits, Z_i = sum_j w_j exp(a_ij), p_ij = w_j exp(a_ij) / Z_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ALL = slice(None)
_BLOCK = 1024  # rows of the [B, B] logits that `weight_gradient_along` holds at once
_LARGEST_EXPONENT = 80.0  # its exp fits float32; only weights below 1e-34 need a larger one


def weighted_clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, log_weights: Tensor
) -> Tensor:
    """Compute the weighted CLIP loss, Eq. 3.

    The weight of an example counts both as a positive and as a negative. Uniform weights 1/B give
    open_clip's ClipLoss, which is the mean over the batch (the paper's Eq. 1 is the sum). Weight 0
    (log weight -inf) gives the loss of the batch without that example. The arithmetic is in float32
    at least, whatever the dtype of the features and autocast.

    Args:
        image_features: image embeddings of unit norm [B, D].
        text_features: text embeddings of unit norm [B, D].
        logit_scale: τ [].
        log_weights: log w [B]; -inf for weight 0. The weights should sum to 1.

    Returns:
        The loss [], differentiable in all four arguments.
    """
    return weighted_clip_loss_of_rows(image_features, text_features, logit_scale, log_weights, _ALL)


def weighted_clip_loss_of_rows(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    log_weights: Tensor,
    rows: slice,
) -> Tensor:
    """Compute the part of `weighted_clip_loss` in which `rows` of the batch are the positives."""
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
    """Compute ∂/∂w of the directional derivative of the weighted CLIP loss (Appendix A).

    If the features move along `tangents`, the loss changes at the rate <g, v> (see `metagradient`).
    Write a'_ij for the derivative of the logits along the tangents, and E_i = sum_j p_ij a'_ij.
    Then the rate is sum_i w_i (E_i - a'_ii) / 2 plus the same with images and texts exchanged, and

        ∂/∂w_k = (E_k - a'_kk + sum_i w_i exp(a_ik) / Z_i (a'_ik - E_i)) / 2
                 + the same with images and texts exchanged.

    This needs no graph, and is finite where w_k = 0.

    Args:
        features: image features [B, D], text features [B, D], τ [].
        tangents: derivatives of the features along the direction, of the same shapes.
        log_weights: log w [B].
        rows: the sum over i runs over these rows, and only entries k among them get E_k - a'_kk.

    Returns:
        The derivative [B]. If the rows are cut into parts, the results of the parts add up to it.
    """
    images, texts, logit_scale = (full_precision(value) for value in features)
    image_tangents, text_tangents, scale_tangent = (full_precision(value) for value in tangents)
    log_weights = full_precision(log_weights)
    gradient = torch.zeros_like(log_weights)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        start, stop, _ = rows.indices(len(images))
        for first in range(start, stop, _BLOCK):
            block = slice(first, min(first + _BLOCK, stop))
            for x, y, dx, dy in (
                (images, texts, image_tangents, text_tangents),
                (texts, images, text_tangents, image_tangents),
            ):
                cosines = x[block] @ y.T
                logits = logit_scale * cosines
                slopes = logit_scale * (dx[block] @ y.T + x[block] @ dy.T) + scale_tangent * cosines
                gradient += _weight_gradient(logits, slopes, log_weights, block)
    return gradient / 2


def full_precision(tensor: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; return float32 and float64 unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _contrast(
    x: Tensor, y: Tensor, logit_scale: Tensor, log_weights: Tensor, rows: slice
) -> Tensor:
    """Compute ℓ_contrast of Eq. 3 for some rows: sum_i -w_i log(w_i exp(a_ii) / Z_i)."""
    logits = logit_scale * x[rows] @ y.T
    log_normalizers = torch.logsumexp(logits + log_weights, dim=1)
    own = log_weights[rows]
    finite = own.masked_fill(own == -torch.inf, 0.0)  # otherwise 0 * log 0 is NaN
    losses = log_normalizers - _positives(logits, rows) - finite
    return own.exp() @ losses


def _weight_gradient(logits: Tensor, slopes: Tensor, log_weights: Tensor, rows: slice) -> Tensor:
    """Compute the bracket of `weight_gradient_along` for one order of the towers; `slopes`: a'."""
    weighted = logits + log_weights
    log_normalizers = torch.logsumexp(weighted, dim=1, keepdim=True)
    means = ((weighted - log_normalizers).exp() * slopes).sum(1, keepdim=True)
    relative = (logits - log_normalizers).clamp(max=_LARGEST_EXPONENT).exp()
    gradient = log_weights[rows].exp() @ (relative * (slopes - means))
    gradient[rows] += means[:, 0] - _positives(slopes, rows)
    return gradient


def _positives(matrix: Tensor, rows: slice) -> Tensor:
    """Return the diagonal entries [b] of some rows [b, B] of a square matrix."""
    start, _, _ = rows.indices(matrix.shape[1])
    return matrix.diagonal(offset=start)
