"""Plain sum of scores as they are (FLYT, Table 2, "Sum")."""

from __future__ import annotations

from collections.abc import Sequence

from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS


def sum_of(columns: Sequence[str] = PUBLISHED_COLUMNS) -> LinearMixingModel:
    """The model that adds `columns` up without standardising them."""
    return LinearMixingModel(tuple(columns), (1.0,) * len(columns), standardize=False)
