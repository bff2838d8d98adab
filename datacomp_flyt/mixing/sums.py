"""Plain and standardised sums of scores (FLYT, Table 2, "Sum" and "Standardized Sum")."""

from __future__ import annotations

from collections.abc import Sequence

from datacomp_flyt.arguments import check_list
from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS


def plain_sum(columns: Sequence[str] = PUBLISHED_COLUMNS) -> LinearMixingModel:
    """Return the model that adds `columns` up without standardising them."""
    columns = tuple(check_list(columns, "--score_columns"))
    return LinearMixingModel(columns, (1.0,) * len(columns), standardize=False)


def standardized_sum(columns: Sequence[str] = PUBLISHED_COLUMNS) -> LinearMixingModel:
    """Return the model that standardises `columns` and adds them up."""
    columns = tuple(check_list(columns, "--score_columns"))
    return LinearMixingModel(columns, (1.0,) * len(columns))
