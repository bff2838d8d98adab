"""Linear mixing models, which combine several score columns into one score."""

from datacomp_flyt.mixing.in_weighted_sum import in_weighted_sum
from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel, mix
from datacomp_flyt.mixing.m_flyt import load_mixing_model, save_mixing_model
from datacomp_flyt.mixing.sums import plain_sum, standardized_sum

__all__ = [
    "LinearMixingModel",
    "in_weighted_sum",
    "load_mixing_model",
    "mix",
    "plain_sum",
    "save_mixing_model",
    "standardized_sum",
]
