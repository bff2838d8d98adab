"""The weighted CLIP loss as FLYT prints it (Eq. 3), one example at a time.

This module needs no `torch.func`, so tests of the hook can use it with PyTorch 1.13.
"""

import torch
from torch import Tensor


def naive_weighted_clip_loss(
    image_features: Tensor, text_features: Tensor, tau: Tensor | float, weights: Tensor
) -> Tensor:
    """Compute Eq. 3 as printed. Rows are unit vectors [B, D]; `tau` multiplies the cosines."""

    def contrast(u: Tensor, v: Tensor) -> Tensor:
        total = u.new_zeros(())
        for i in range(len(weights)):
            pull = torch.exp(tau * (v @ u[i]))  # [B]: e^{tau <u_i, v_j>}
            total = total - weights[i] * torch.log(weights[i] * pull[i] / (weights * pull).sum())
        return total

    return (contrast(image_features, text_features) + contrast(text_features, image_features)) / 2
