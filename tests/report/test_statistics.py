"""The numbers behind the figures, against plain loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from datacomp_flyt.report.statistics import (
    bin_edges,
    contribution,
    correlations,
    mean_by_score,
    repetition_histogram,
    weighted_histogram,
)

RNG = np.random.default_rng(0)


def test_a_histogram_weighs_each_value_by_its_draws() -> None:
    values = RNG.normal(size=500).astype(np.float32)
    values[[3, 77]] = np.nan, np.inf
    counts = RNG.integers(0, 9, 500)
    edges = np.linspace(-1, 1, 11)
    shares, mean = weighted_histogram(values, counts, edges)

    plain = np.zeros(10)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if np.isfinite(value):
            inside = min(max(value, -1.0), 1.0)
            plain[min(sum(edge <= inside for edge in edges[1:-1].tolist()), 9)] += count
    np.testing.assert_allclose(shares, plain / plain.sum(), atol=1e-12)
    every = np.repeat(values, counts)
    assert mean == pytest.approx(float(every[np.isfinite(every)].astype(np.float64).mean()))


def test_a_histogram_of_nothing_is_empty() -> None:
    shares, mean = weighted_histogram(np.array([1.0, np.nan]), np.array([0, 4]), np.arange(4.0))
    assert shares.tolist() == [0, 0, 0]
    assert np.isnan(mean)


@pytest.mark.parametrize("values", [np.full(5, 3.0), np.array([np.nan]), np.array([0.0])])
def test_edges_rise_even_for_constant_or_missing_scores(values: np.ndarray) -> None:
    assert (np.diff(bin_edges(values)) > 0).all()


def test_an_outlier_does_not_set_the_scale() -> None:
    values = np.append(RNG.normal(size=20_000), 1e9)
    assert bin_edges(values)[-1] < 10


@pytest.mark.parametrize("most", [1, 60, 61, 5000])
def test_repetitions_count_each_example_once(most: int) -> None:
    counts = np.append(RNG.integers(1, most + 1, 400), most)
    edges, examples = repetition_histogram(counts)
    assert len(edges) <= 62
    number = Counter(counts.tolist())
    for low, high, each in zip(edges[:-1], edges[1:], examples, strict=True):
        span = range(int(low), int(high))
        assert each * len(span) == pytest.approx(sum(number[count] for count in span))
    assert (examples * np.diff(edges)).sum() == pytest.approx(len(counts))


def test_single_repetitions_have_bars_of_their_own() -> None:
    edges, examples = repetition_histogram(np.array([1, 1, 1, 3]))
    assert edges.tolist() == [1, 2, 3, 4]
    assert examples.tolist() == [3, 0, 1]


def test_mean_by_score_is_the_mean_of_neighbours() -> None:
    scores = RNG.permutation(4000).astype(np.float64)
    counts = RNG.integers(0, 5, 4000)
    medians, (means,) = mean_by_score(scores, [counts], num_bins=10)
    by_score = counts[np.argsort(scores)]
    parts = [by_score[start : start + 400] for start in range(0, 3600, 400)]
    parts += [by_score[start : start + 40] for start in range(3600, 4000, 40)]
    np.testing.assert_allclose(means, [part.mean() for part in parts])
    assert medians[0] == 199.5
    assert (np.diff(medians) > 0).all()


@pytest.mark.parametrize("number", [1, 19, 41])
def test_few_examples_make_few_means(number: int) -> None:
    medians, (means,) = mean_by_score(np.arange(float(number)), [np.ones(number, int)])
    assert 1 <= len(medians) <= max(number // 20, 1)
    assert means.tolist() == [1.0] * len(medians)


def test_correlations_are_pearsons_over_common_rows() -> None:
    columns = [RNG.normal(size=300) for _ in range(3)]
    columns[1] = columns[1] + 2 * columns[0]
    columns[2][:40] = np.nan
    found = correlations(columns)
    full = np.corrcoef(columns[:2])
    np.testing.assert_allclose(found[:2, :2], full)
    part = np.corrcoef([column[40:] for column in columns])
    np.testing.assert_allclose(found[2], part[2])
    np.testing.assert_array_equal(found, found.T)


def test_a_constant_column_correlates_with_nothing() -> None:
    found = correlations([np.ones(9), np.arange(9.0), np.full(9, np.nan)])
    assert np.isnan(found[0]).all()
    assert np.isnan(found[2]).all()
    assert found[1, 1] == 1


def test_contributions_and_their_shift() -> None:
    values = RNG.normal(3, 2, 1000)
    drawn = (values > 3).astype(np.int64) * 4
    found = contribution("a", values, [drawn, 0 * drawn], -0.5, 3.0, 2.0)
    added = -0.5 * (values - 3) / 2
    assert found.spread == pytest.approx(added.std())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(added, [0.05, 0.95])))
    assert found.shifts[0] == pytest.approx(added[values > 3].mean() - added.mean())
    assert np.isnan(found.shifts[1])
