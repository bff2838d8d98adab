"""Linear mixing model: several columns -> one score (FLYT, section 3.4).

    s = sum_c weight_c * (x_c - mean_c) / std_c + bias

The plain and weighted sums of the paper's baselines are such models too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.memmap_arrays import filter_rows, zeros_like_storage
from datacomp_flyt.mixing.standardization import mean_and_std
from datacomp_flyt.threads import blocks, map_threads

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
        """Return the same model without the columns that are not in `columns`."""
        kept = set(columns)
        chosen = [index for index, column in enumerate(self.columns) if column in kept]

        def pick(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
            return None if values is None else tuple(values[index] for index in chosen)

        return replace(
            self,
            columns=tuple(self.columns[index] for index in chosen),
            weights=tuple(self.weights[index] for index in chosen),
            means=pick(self.means),
            stds=pick(self.stds),
        )


def mix(
    model: LinearMixingModel, columns: Iterable[NDArray[np.floating]], num_workers: int = 1
) -> tuple[NDArray[np.float64], LinearMixingModel]:
    """Return scores of all examples, and the model with the statistics that standardised them.

    Statistics are computed over the examples that have a score in every column; other examples
    have no influence.

    Args:
        model: k columns.
        columns: k arrays [M] in the model's order, taken one at a time; NaN where an example
            has no score, which makes its mixed score NaN. They are iterated over a second time if
            the model has no statistics and a later column lacks examples that an earlier one has.
        num_workers: threads; their number does not change the result.

    Returns:
        float64 array [M], and a model whose `means` and `stds` are set if it standardises.

    Raises:
        InputError: a column to standardise is constant, or no example has all columns.
    """
    kept = Kept()
    mixed = _mix_once(model, columns, kept, num_workers)
    if mixed is None:
        if isinstance(columns, Iterator):
            raise ValueError("columns with different gaps are iterated over twice: give a sequence")
        mixed = _mix_once(model, columns, kept, num_workers)
    assert mixed is not None, "the second time nothing more is left out"
    return mixed


def _mix_once(
    model: LinearMixingModel,
    columns: Iterable[NDArray[np.floating]],
    kept: Kept,
    num_workers: int,
) -> tuple[NDArray[np.float64], LinearMixingModel] | None:
    """See `mix`; None if a column after the first lacks examples that all before it have."""
    scores: NDArray[np.float64] | None = None
    means, stds = [], []
    complete = True
    for index, values in enumerate(columns):
        if not model.standardize:
            mean, std = 0.0, 1.0
        elif model.means is None or model.stds is None:
            if kept.leave_out(values, model.columns[index], num_workers) and index:
                complete = False
            if not complete:
                continue  # the other columns are only read for the examples that they lack
            mean, std = mean_and_std(kept.rows(values), model.columns[index], num_workers)
        else:
            mean, std = model.means[index], model.stds[index]
        means.append(mean)
        stds.append(std)
        if scores is None:
            scores = zeros_like_storage(values, np.float64)
        start = 0.0 + model.bias if index == 0 else None
        _add(scores, start, values, mean, model.weights[index] / std, num_workers)
        del values  # before the next column is read
    if not complete:
        return None
    assert scores is not None, "a model has at least one column"
    if model.standardize:
        model = replace(model, means=tuple(means), stds=tuple(stds))
    return scores, model


class Kept:
    """The examples [M] that have a score in every column seen so far."""

    def __init__(self) -> None:
        self._mask: NDArray[np.bool_] | None = None  # None: all

    def leave_out(self, values: NDArray[np.floating], column: str, num_workers: int) -> bool:
        """Leave out the examples without a finite value [M]; return whether any was left out.

        Raises:
            InputError: no example is left.
        """

        def incomplete(block: slice) -> bool:
            return not np.isfinite(values[block]).all()

        parts = blocks(len(values), _BLOCK)
        incomplete_blocks = map_threads(incomplete, parts, num_workers)
        more = False
        for block in itertools.compress(parts, incomplete_blocks):
            if self._mask is None:
                self._mask = zeros_like_storage(values, np.bool_)
                self._mask[:] = True
            left = self._mask[block] & np.isfinite(values[block])
            more |= not np.array_equal(left, self._mask[block])
            self._mask[block] = left
        if more and self._mask is not None and not self._mask.any():
            raise InputError(
                f"column {column!r} leaves no example with a finite score in every column, so it "
                "has no standard deviation: give tables of one pool, or leave the column out"
            )
        return more

    def rows(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the values of these examples, of an array [M]."""
        if self._mask is None:
            return values
        return filter_rows((self._mask, values), lambda some: some)[1]


def _add(
    scores: NDArray[np.float64],
    start: float | None,
    values: NDArray[np.floating],
    mean: float,
    scale: float,
    num_workers: int,
) -> None:
    """scores += (values - mean) * scale, in place; scores are `start` before if that is given."""

    def add(block: slice) -> None:
        part = values[block].astype(np.float64)
        part -= mean
        part *= scale
        scores[block] = (scores[block] if start is None else start) + part

    map_threads(add, blocks(len(scores), _BLOCK), num_workers)
