"""Linear mixing model: one score out of several columns (FLYT, section 3.4).

    s = sum_c weight_c * (x_c - mean_c) / std_c + bias

The plain and weighted sums of the paper's baselines are such models too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.engines.threads import blocks, map_threads
from datacomp_flyt.mixing.standardization import mean_and_std
from datacomp_flyt.pool.file_arrays import beside

_BLOCK = 1 << 16


@dataclass(frozen=True)
class LinearMixingModel:
    """Weights of named columns.

    Attributes:
        columns: names [k].
        weights: one for each column [k].
        bias: added to all scores; changes neither ranking nor sampling.
        standardize: whether the weights are those of standardised columns.
        means, stds: the statistics [k] to standardise by; None for those of the pool at hand.
    """

    columns: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float = 0.0
    standardize: bool = True
    means: tuple[float, ...] | None = None
    stds: tuple[float, ...] | None = None

    def restricted_to(self, columns: Iterable[str]) -> LinearMixingModel:
        """The same model without the columns that are not in `columns`."""
        kept = set(columns)
        chosen = [number for number, column in enumerate(self.columns) if column in kept]

        def pick(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
            return None if values is None else tuple(values[number] for number in chosen)

        return replace(
            self,
            columns=tuple(self.columns[number] for number in chosen),
            weights=tuple(self.weights[number] for number in chosen),
            means=pick(self.means),
            stds=pick(self.stds),
        )


def mix(
    model: LinearMixingModel, columns: Iterable[NDArray[np.floating]], num_workers: int = 1
) -> tuple[NDArray[np.float64], LinearMixingModel]:
    """Scores of all examples, and the model with the statistics that standardised them.

    Args:
        model: k columns.
        columns: k arrays [M] in the model's order, taken one at a time; NaN where an example
            has no score, which makes its mixed score NaN and leaves the statistics alone.
        num_workers: threads; they do not change the result.

    Returns:
        float64 array [M], and a model whose `means` and `stds` are set if it standardises.

    Raises:
        InputError: a column to standardise is constant.
    """
    scores: NDArray[np.float64] | None = None
    means, stds = [], []
    for number, values in enumerate(columns):
        if not model.standardize:
            mean, std = 0.0, 1.0
        elif model.means is None or model.stds is None:
            mean, std = mean_and_std(values, model.columns[number], num_workers)
        else:
            mean, std = model.means[number], model.stds[number]
        means.append(mean)
        stds.append(std)
        if scores is None:
            scores = beside(values, np.float64)
        start = 0.0 + model.bias if number == 0 else None
        _add(scores, start, values, mean, model.weights[number] / std, num_workers)
        del values  # before the next column is read
    assert scores is not None, "a model has at least one column"
    if model.standardize:
        model = replace(model, means=tuple(means), stds=tuple(stds))
    return scores, model


def _add(
    scores: NDArray[np.float64],
    start: float | None,
    values: NDArray[np.floating],
    mean: float,
    scale: float,
    num_workers: int,
) -> None:
    """scores += (values - mean) * scale, in place; from `start` instead, where it is given."""

    def add(block: slice) -> None:
        part = values[block].astype(np.float64)
        part -= mean
        part *= scale
        scores[block] = (scores[block] if start is None else start) + part

    map_threads(add, blocks(len(scores), _BLOCK), num_workers)
