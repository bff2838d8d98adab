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
from datacomp_flyt.files.memmap_arrays import zeros_like_storage
from datacomp_flyt.mixing.standardization import BLOCK, mean_and_std
from datacomp_flyt.pool.row_order import Column, RowOrder
from datacomp_flyt.threads import blocks, map_threads

_BLOCK = 1 << 17  # rows that a thread handles at once


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
    model: LinearMixingModel,
    columns: Iterable[Column | NDArray[np.floating]],
    num_workers: int = 1,
) -> tuple[NDArray[np.float64], LinearMixingModel]:
    """Return scores of all examples, and the model with the statistics that standardised them.

    Statistics are computed over the examples that have a score in every column; other examples
    have no influence.

    Args:
        model: k columns.
        columns: k columns in the model's order, taken one at a time, in any order of examples, or
            arrays [M] in the order of the pool; NaN where an example has no score, which makes its
            mixed score NaN. They are iterated over a second time if the model has no statistics
            and a later column lacks examples that an earlier one has.
        num_workers: threads; their number does not change the result.

    Returns:
        float64 array [M] in the order of the pool, and a model whose `means` and `stds` are set if
        it standardises.

    Raises:
        InputError: a column to standardise is constant, or no example has all columns.
    """
    kept = _Kept(num_workers)
    mixed = _mix_once(model, columns, kept, num_workers)
    if mixed is None:
        if isinstance(columns, Iterator):
            raise ValueError("columns with different gaps are iterated over twice: give a sequence")
        mixed = _mix_once(model, columns, kept, num_workers)
    assert mixed is not None, "the second time nothing more is left out"
    return mixed


def _mix_once(
    model: LinearMixingModel,
    columns: Iterable[Column | NDArray[np.floating]],
    kept: _Kept,
    num_workers: int,
) -> tuple[NDArray[np.float64], LinearMixingModel] | None:
    """See `mix`; None if a column after the first lacks examples that all before it have."""
    scores: NDArray[np.float64] | None = None
    order: RowOrder | None = None  # of the scores: that of the last column
    means, stds = [], []
    complete = True
    for index, column in enumerate(columns):
        if not isinstance(column, Column):
            column = Column(column, RowOrder(len(column)))
        if not model.standardize:
            mean, std = 0.0, 1.0
        elif model.means is None or model.stds is None:
            if kept.leave_out(column, model.columns[index]) and index:
                complete = False
            if not complete:
                continue  # the other columns are only read for the examples that they lack
            mean, std = mean_and_std(column.values, model.columns[index], num_workers, kept.mask)
        else:
            mean, std = model.means[index], model.stds[index]
        means.append(mean)
        stds.append(std)
        if order is None or scores is None:
            scores = zeros_like_storage(column.values, np.float64)
        else:
            scores = order.move(scores, column.order, np.nan, num_workers)
        order = column.order
        start = 0.0 + model.bias if index == 0 else None
        _add(scores, start, column.values, mean, model.weights[index] / std, num_workers)
        del column  # before the next column is read
    if not complete:
        return None
    assert scores is not None, "a model has at least one column"
    assert order is not None
    if model.standardize:
        model = replace(model, means=tuple(means), stds=tuple(stds))
    return order.to_pool(scores, np.nan, num_workers), model


class _Kept:
    """The examples that have a score in every column seen so far.

    Attributes:
        mask: whether each example of the last column [n] is one of them; None if all are.
    """

    def __init__(self, num_workers: int) -> None:
        self.mask: NDArray[np.bool_] | None = None
        self._order: RowOrder | None = None  # of the mask
        self._num_workers = num_workers

    def leave_out(self, column: Column, name: str) -> bool:
        """Leave out the examples without a finite value in a column; return whether any was.

        Raises:
            InputError: no example is left.
        """
        before = column.order.pool_size if self._order is None else self._count()
        self._move(column)
        values = column.values

        def incomplete(block: slice) -> bool:
            return not np.isfinite(values[block]).all()

        parts = blocks(len(values), _BLOCK)
        incomplete_blocks = map_threads(incomplete, parts, self._num_workers)
        for block in itertools.compress(parts, incomplete_blocks):
            if self.mask is None:
                self.mask = _ones_like_storage(values)
            self.mask[block] &= np.isfinite(values[block])
        count = self._count()
        if not count:
            raise InputError(
                f"column {name!r} leaves no example with a finite score in every column, so it "
                "has no standard deviation: give tables of one pool, or leave the column out"
            )
        return count < before

    def _count(self) -> int:
        assert self._order is not None
        return len(self._order) if self.mask is None else int(np.count_nonzero(self.mask))

    def _move(self, column: Column) -> None:
        """Bring the mask into the order of a column."""
        old, self._order = self._order, column.order
        if old is None or (self.mask is None and len(old) == old.pool_size):
            return  # all examples of the pool have been kept so far
        mask = np.ones(len(old), np.bool_) if self.mask is None else self.mask
        self.mask = old.move(mask, column.order, False, self._num_workers)


def _ones_like_storage(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    ones: NDArray[np.bool_] = zeros_like_storage(values, np.bool_)
    ones[:] = True
    return ones


def _add(
    scores: NDArray[np.float64],
    start: float | None,
    values: NDArray[np.floating],
    mean: float,
    scale: float,
    num_workers: int,
) -> None:
    """scores += (values - mean) * scale, in place; scores are `start` before if that is given."""

    def add(rows: slice) -> None:
        for block in blocks(rows.stop, BLOCK, rows.start):
            part = values[block].astype(np.float64)
            part -= mean
            part *= scale
            part += scores[block] if start is None else start
            scores[block] = part

    map_threads(add, blocks(len(scores), _BLOCK), num_workers)
