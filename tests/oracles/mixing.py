"""Mixing score columns into one score, one example at a time (FLYT sections 4.2 and C.5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Columns = Mapping[str, Sequence[float]]

# Table 2 of the paper, in the order of the published mixing model.
PAPER_WEIGHTS: dict[str, float] = {
    "vit-b-32": 0.08,
    "vit-l-14": 0.21,
    "DFN-Base": 0.60,
    "DFN-FT": 0.80,
    "CC2M-Classifier": 0.17,
    "IN1K-Classifier": 0.36,
    "FLYT": 0.65,
    "normsim_inf": 0.55,
    "negCLIPLoss": 0.51,
    "hype_lorentzian_distance": 0.45,
    "hype_image_specificity": -0.05,
    "hype_text_specificity": 0.02,
}

# Table 2: the ImageNet accuracy of each input alone. Table 2 has one accuracy for the three HYPE
# scores, and one for s-CLIPLoss with NormSim; each score of such a group gets that accuracy.
PAPER_IMAGENET_ACCURACIES: dict[str, float] = {
    "vit-b-32": 0.282,
    "vit-l-14": 0.267,
    "DFN-Base": 0.297,
    "DFN-FT": 0.342,
    "CC2M-Classifier": 0.287,
    "IN1K-Classifier": 0.268,
    "FLYT": 0.316,
    "normsim_inf": 0.331,
    "negCLIPLoss": 0.331,
    "hype_lorentzian_distance": 0.309,
    "hype_image_specificity": 0.309,
    "hype_text_specificity": 0.309,
}


def standardize(column: Sequence[float]) -> list[float]:
    """Scale a column to zero mean and unit (population) standard deviation."""
    values = [float(value) for value in column]
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / std for value in values]


def weighted_sum(columns: Columns, weights: Mapping[str, float], bias: float = 0.0) -> list[float]:
    """Return ``sum_i w_i x_i + bias`` of each example, over the columns named in ``weights``."""
    length = len(next(iter(columns.values())))
    return [
        math.fsum([weights[name] * float(columns[name][row]) for name in weights] + [bias])
        for row in range(length)
    ]


def plain_sum(columns: Columns) -> list[float]:
    """Return the sum of the raw columns."""
    return weighted_sum(columns, dict.fromkeys(columns, 1.0))


def standardized_sum(columns: Columns) -> list[float]:
    """Return the sum of the standardised columns."""
    return plain_sum({name: standardize(column) for name, column in columns.items()})


def m_flyt(columns: Columns, weights: Mapping[str, float], bias: float = 0.0) -> list[float]:
    """Apply the linear mixing model to standardised columns (section 4.2)."""
    standardized = {name: standardize(columns[name]) for name in weights}
    return weighted_sum(standardized, weights, bias)


def in_weighted_weights(accuracies: Mapping[str, float], ratio: float) -> dict[str, float]:
    """Scale accuracies to [0, 1] and shift them so that max / min = ``ratio`` (appendix C.5)."""
    lowest, highest = min(accuracies.values()), max(accuracies.values())
    return {
        name: (accuracy - lowest) / (highest - lowest) + 1.0 / (ratio - 1.0)
        for name, accuracy in accuracies.items()
    }


def in_weighted_sum(columns: Columns, accuracies: Mapping[str, float], ratio: float) -> list[float]:
    """Return the weighted sum of the standardised columns (appendix C.5)."""
    return m_flyt(columns, in_weighted_weights(accuracies, ratio))
