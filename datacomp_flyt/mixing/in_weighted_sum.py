"""ImageNet-weighted standardised sum (FLYT, Appendix C.5)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel
from datacomp_flyt.mixing.published import PUBLISHED_SCORES

PAPER_ACCURACIES = {score.column: score.imagenet_accuracy for score in PUBLISHED_SCORES}


def in_weighted_sum(
    ratio: float, imagenet_accuracies: Mapping[str, float] | None = None
) -> LinearMixingModel:
    """Return the model whose weights grow with the ImageNet accuracy that a score alone leads to.

        w_i = (IN_i - min IN) / (max IN - min IN) + 1 / (r - 1),  so that max w / min w = r

    Args:
        ratio: r > 1 (paper: 2, 4, 8, 16).
        imagenet_accuracies: IN by column; the paper's (Table 2) if None.

    Raises:
        InputError: r <= 1, fewer than two columns, or all accuracies equal.
    """
    accuracies = dict(imagenet_accuracies or PAPER_ACCURACIES)
    low, high = min(accuracies.values()), max(accuracies.values())
    if not 1 < ratio < float("inf"):
        raise InputError(f"--weight_ratio is {ratio}, wanted more than 1")
    if not all(math.isfinite(value) for value in accuracies.values()) or not low < high:
        raise InputError(
            f"--imagenet_accuracies {list(accuracies.values())} weigh nothing: wanted finite "
            "numbers, not all equal, or use standardized_sum"
        )
    weights = [(value - low) / (high - low) + 1 / (ratio - 1) for value in accuracies.values()]
    return LinearMixingModel(tuple(accuracies), tuple(weights))
