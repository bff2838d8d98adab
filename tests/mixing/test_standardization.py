"""Sums of columns against exact fractions: any floats, in any order and split."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from datacomp_flyt.mixing.standardization import BLOCK, Moments, mean_and_std

UNIT = 1 << 2200
LENGTHS = st.integers(0, 30)
doubles = arrays(np.float64, LENGTHS, elements=st.floats(allow_nan=False, allow_infinity=False))
singles = arrays(
    np.float32, LENGTHS, elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
)


def fractions(values: np.ndarray) -> list[Fraction]:
    return [Fraction(float(value)) for value in values]


@given(st.one_of(doubles, singles))
def test_sums_are_exact_for_any_finite_floats(values: np.ndarray) -> None:
    moments = Moments.of(values)
    assert moments.count == len(values)
    assert Fraction(moments.total, UNIT) == sum(fractions(values))
    assert Fraction(moments.squares, UNIT) == sum(value**2 for value in fractions(values))


@pytest.mark.parametrize("spread", [1, 40, 300, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_a_whole_block_are_exact(spread: int, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(spread)
    spread = min(spread, 100) if dtype == np.float32 else spread
    values = np.ldexp(rng.normal(size=BLOCK), rng.integers(-spread, spread, BLOCK)).astype(dtype)
    values[:9] = 0
    moments = Moments.of(values)
    assert Fraction(moments.total, UNIT) == sum(fractions(values))
    assert Fraction(moments.squares, UNIT) == sum(value**2 for value in fractions(values))


def test_the_largest_block_of_the_largest_values_is_exact() -> None:
    values = np.full(1 << 16, np.nextafter(2.0, 1.0))
    moments = Moments.of(values)
    assert Fraction(moments.total, UNIT) == len(values) * Fraction(values[0])
    assert Fraction(moments.squares, UNIT) == len(values) * Fraction(values[0]) ** 2


@given(st.one_of(doubles, singles))
def test_mean_and_standard_deviation_are_the_nearest_floats(values: np.ndarray) -> None:
    exact = fractions(values)
    mean = sum(exact, Fraction(0)) / max(len(exact), 1)
    variance = sum(((value - mean) ** 2 for value in exact), Fraction(0)) / max(len(exact), 1)
    try:
        found = Moments.of(values).mean_and_std("a")
    except ValueError:
        assert variance <= Fraction(1.0001e-24) * mean**2
        return
    assert found[0] == float(mean)
    lower, upper = (Fraction(math.nextafter(found[1], end)) for end in (0.0, math.inf))
    middle = Fraction(found[1])
    assert ((lower + middle) / 2) ** 2 <= variance <= ((middle + upper) / 2) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_split_and_threads_change_no_bit(dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(3)
    values = (rng.normal(size=20 * BLOCK + 77) ** 9).astype(dtype)
    found = mean_and_std(values, "a")
    for workers in (1, 3):
        assert mean_and_std(rng.permutation(values), "a", workers) == found
    parts = np.split(values, [1, 5, BLOCK, 3 * BLOCK + 1])
    blocks = [part[start : start + 999] for part in parts for start in range(0, len(part), 999)]
    assert sum(map(Moments.of, reversed(blocks)), Moments()).mean_and_std("a") == found


def test_only_kept_values_count() -> None:
    values = np.random.default_rng(4).normal(size=BLOCK + 500)
    kept = np.arange(len(values)) % 3 > 0
    holes = np.where(kept, values, np.inf)
    assert mean_and_std(values, "a", 2, kept) == mean_and_std(values[kept], "a")
    assert mean_and_std(holes, "a") == mean_and_std(values[kept], "a")
