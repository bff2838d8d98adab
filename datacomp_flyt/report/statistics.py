"""Computes the numbers of the figures: weighted histograms, counts by score, correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FEWEST_BINS, _MOST_BINS = 10, 60
_TAIL = 0.001  # share of values at each end that share a bin, so that outliers set no scale
_MOST_BARS = 60
_FEWEST = 20  # examples in a mean


def bin_edges(values: NDArray[np.floating]) -> Floats:
    """Compute edges [b + 1] of equal bins over the finite values, without 0.1% at each end.

    There are 10 to 60 bins, fewer for few values.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = np.quantile(finite, [_TAIL, 1 - _TAIL]) if len(finite) else (0.0, 1.0)
    if not high > low:
        margin = max(abs(low) * 1e-6, 0.5)
        low, high = low - margin, high + margin
    bins = min(max(round(len(finite) ** 0.5), _FEWEST_BINS), _MOST_BINS)
    return np.linspace(low, high, bins + 1)


def weighted_histogram(
    values: NDArray[np.floating], weights: NDArray[np.generic], edges: Floats
) -> tuple[Floats, float]:
    """Compute the share of the weight in each bin, and the weighted mean of the values.

    Args:
        values: the values [n]. Those that are not finite are left out, and those beyond the edges
            count in the outermost bins.
        weights: their weights [n].
        edges: the edges of the bins [b + 1].

    Returns:
        shares [b] that sum to 1, and the mean; zeros and NaN if the weights sum to 0.
    """
    used = np.isfinite(values)
    finite, used_weights = values[used].astype(np.float64), weights[used].astype(np.float64)
    total = float(used_weights.sum())
    if not total:
        return np.zeros(len(edges) - 1), float("nan")
    inside = np.clip(finite, edges[0], edges[-1])
    shares, _ = np.histogram(inside, edges, weights=used_weights)
    return shares / total, float(finite @ used_weights / total)


def repetition_histogram(counts: NDArray[np.integer]) -> tuple[NDArray[np.int64], Floats]:
    """Count examples by their number of draws (FLYT, Figure 2).

    Args:
        counts: the number of draws of each example [n], 1 or more.

    Returns:
        edges [b + 1] of bins, `edges[i] <= count < edges[i + 1]`: one for each count up to 60, or
        growing bins if there are more; and the mean number of examples for a count in each bin [b].
    """
    most = int(counts.max())
    if most <= _MOST_BARS:
        edges = np.arange(1, most + 2)
    else:
        edges = np.unique(np.round(np.geomspace(1, most + 1, _MOST_BARS)).astype(np.int64))
    examples, _ = np.histogram(counts, edges)
    return edges.astype(np.int64), examples / np.diff(edges)


def mean_by_score(
    scores: NDArray[np.floating], groups: Sequence[NDArray[np.integer]], num_bins: int = 40
) -> tuple[Floats, list[Floats]]:
    """Compute means over examples with about the same score.

    Args:
        scores: finite scores [n].
        groups: arrays of numbers [n].
        num_bins: the number of bins of equal size. The bin with the highest scores is split into
            ten. There are fewer bins if one would hold less than 20 examples.

    Returns:
        the median score of each bin [b], and for each of `groups` its means [b].
    """
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, min(max(len(order) // _FEWEST, 1), num_bins))
    parts[-1:] = np.array_split(parts[-1], min(max(len(parts[-1]) // _FEWEST, 1), 10))
    medians = np.array([float(np.median(scores[part])) for part in parts])
    return medians, [np.array([float(group[part].mean()) for part in parts]) for group in groups]


def correlations(columns: Sequence[NDArray[np.floating]]) -> Floats:
    """Compute Pearson's correlation of each pair of columns [n], over rows where both are finite.

    Returns:
        [k, k]; NaN for a pair with fewer than 3 such rows, or with a constant column.
    """
    finite = [np.isfinite(column) for column in columns]
    result: Floats = np.full((len(columns), len(columns)), np.nan)
    for row, one in enumerate(columns):
        for column in range(row + 1):
            both = finite[row] & finite[column]
            x, y = one[both].astype(np.float64), columns[column][both].astype(np.float64)
            if len(x) < 3:
                continue
            x, y = x - x.mean(), y - y.mean()
            norm = float(np.sqrt((x @ x) * (y @ y)))
            if norm > 0:
                result[row, column] = result[column, row] = np.clip(x @ y / norm, -1, 1)
    return result


@dataclass(frozen=True)
class Contribution:
    """The contribution of one input to the mixed score.

    Attributes:
        column, weight: the input and its weight.
        mean, std: the statistics that standardise the input.
        spread: the standard deviation over the pool of weight * (x - mean) / std.
        low, middle, high: the 5%, 50% and 95% quantiles of this product.
        shifts: its mean over each selection's draws, less its mean over the pool [k].
    """

    column: str
    weight: float
    mean: float
    std: float
    spread: float
    low: float
    middle: float
    high: float
    shifts: tuple[float, ...]


def contribution(
    column: str,
    values: NDArray[np.floating],
    counts: Sequence[NDArray[np.integer]],
    weight: float,
    mean: float,
    std: float,
) -> Contribution:
    """Compute the contribution of a column.

    Args:
        column: its name.
        values: its values [n], at least one of them finite.
        counts: for each selection, the number of draws of each example [n].
        weight, mean, std: the weight of the column and the statistics that standardise it.
    """
    finite = np.isfinite(values)
    added = weight * (values[finite].astype(np.float64) - mean) / std
    low, middle, high = (float(value) for value in np.quantile(added, [0.05, 0.5, 0.95]))
    shifts = []
    for drawn in counts:
        weights = drawn[finite].astype(np.float64)
        total = weights.sum()
        shifts.append(float(added @ weights / total - added.mean()) if total else float("nan"))
    return Contribution(
        column, weight, mean, std, float(added.std()), low, middle, high, tuple(shifts)
    )
