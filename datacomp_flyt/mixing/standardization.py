"""Zero mean and unit standard deviation over all examples (FLYT, section 4.2 and C.5).

Sums are exact, so mean and standard deviation are the floats nearest to the true ones, and the same
for any order and split of the values.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.threads import blocks, map_threads

BLOCK = 1 << 13
"""Values of a block: temporary arrays stay in a core's cache, and `numpy.dot` on one thread."""

_SLICE_BITS = 18  # float64 holds a sum of 2**16 products of two such numbers
_MOST_VALUES = 1 << 16
_UNIT = 2200  # 2**-2148 is the square of the smallest float64
_LARGEST, _SCALE = 400, 600  # exponents: products of values beyond 2**400 and 2**-400 are scaled


@dataclass(frozen=True)
class Moments:
    """The exact sums of some values and of their squares.

    Attributes:
        count: the number of values.
        total: their sum, in units of 2**-2200.
        squares: the sum of their squares, in the same units.
    """

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Moments:
        """Add up the finite values among some [n], n <= 65,536, and their squares."""
        assert len(values) <= _MOST_VALUES
        peak = _peak(values)
        if not math.isfinite(peak):
            values = values[np.isfinite(values)]
            peak = _peak(values)
        num_slices = 2 if values.itemsize < 8 else 4
        return cls(len(values), *_exact_sums(values.astype(np.float64), peak, num_slices))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def mean_and_std(self, column: str) -> tuple[float, float]:
        """Return mean and standard deviation (ddof 0), correctly rounded.

        Raises:
            InputError: the column is constant or empty, so that it cannot be standardised.
        """
        mean = Fraction(self.total, max(self.count, 1) << _UNIT)
        std = _square_root(Fraction(self.squares, max(self.count, 1) << _UNIT) - mean**2)
        if std <= 1e-12 * abs(mean):
            raise InputError(
                f"column {column!r} has standard deviation {std:.3g} around {float(mean):.3g}, so "
                "it cannot be standardised: leave it out or mend it"
            )
        return float(mean), std


def mean_and_std(
    values: NDArray[np.floating],
    column: str,
    num_workers: int = 1,
    kept: NDArray[np.bool_] | None = None,
) -> tuple[float, float]:
    """Return mean and standard deviation (ddof 0) of the finite values of a column [M], in float64.

    Args:
        values: floats [M].
        column: the name of the column in messages.
        num_workers: threads; their number does not change the result.
        kept: a mask [M] of the values that count; None for all.

    Raises:
        InputError: the column is constant or empty, so that it cannot be standardised.
    """

    def moments(rows: slice) -> Moments:
        total = Moments()
        for block in blocks(rows.stop, BLOCK, rows.start):
            total += Moments.of(values[block] if kept is None else values[block][kept[block]])
        return total

    parts = map_threads(moments, blocks(len(values), 16 * BLOCK), num_workers)
    return sum(parts, Moments()).mean_and_std(column)


def _peak(values: NDArray[np.floating]) -> float:
    """Return the largest magnitude, 0 of no values; infinite or NaN if a value is."""
    return max(float(values.max()), -float(values.min())) if len(values) else 0.0


def _exact_sums(values: NDArray[np.float64], peak: float, num_slices: int) -> tuple[int, int]:
    """Return the exact sums of values [n] and of their squares, see `Moments`.

    As in Ozaki's matrix product, values are cut into slices of so few bits that float64 holds all
    sums of products of two slices, in any order. Values that have more bits, because they are much
    smaller than others, are added up apart.

    Args:
        values: finite floats.
        peak: their largest magnitude.
        num_slices: the number of slices of 18 bits.
    """
    if not peak:
        return 0, 0
    exponent = math.frexp(peak)[1]
    if abs(exponent) > _LARGEST:
        return _scaled_sums(values, num_slices, exponent > 0)
    slices, rest = [], values
    for index in range(num_slices):
        # adding the anchor rounds to multiples of 2**(exponent - 18 * (index + 1))
        anchor = 1.5 * 2.0 ** (exponent - _SLICE_BITS * (index + 1) + 52)
        part = rest + anchor
        part -= anchor
        rest = np.subtract(rest, part, out=rest if index else None)
        slices.append(part)
    total = squares = 0
    if rest.any():
        rows = np.flatnonzero(rest)
        smaller = values[rows]
        total, squares = _exact_sums(smaller, _peak(smaller), num_slices)
        for part in slices:
            part[rows] = 0
    for part in slices:
        total += _units(part.sum())
    for a, b in itertools.combinations_with_replacement(slices, 2):
        squares += _units(np.dot(a, b)) << (a is not b)
    return total, squares


def _scaled_sums(values: NDArray[np.float64], num_slices: int, large: bool) -> tuple[int, int]:
    """Return the sums of values whose squares float64 cannot hold, see `_exact_sums`."""
    apart = np.abs(values) >= 1 if large else np.ones(len(values), np.bool_)
    shift = _SCALE if large else -_SCALE
    scaled, others = np.ldexp(values[apart], -shift), values[~apart]
    total, squares = _exact_sums(scaled, _peak(scaled), num_slices)
    other_total, other_squares = _exact_sums(others, _peak(others), num_slices)
    return _shifted(total, shift) + other_total, _shifted(squares, 2 * shift) + other_squares


def _shifted(number: int, bits: int) -> int:
    return number << bits if bits > 0 else number >> -bits


def _units(value: float) -> int:
    numerator, denominator = float(value).as_integer_ratio()
    return numerator << (_UNIT + 1 - denominator.bit_length())


def _square_root(square: Fraction) -> float:
    """Return the float nearest to the square root."""
    if not square:
        return 0.0
    # at least 64 bits of the root, of which the last says whether others follow
    shift = (square.denominator.bit_length() - square.numerator.bit_length()) // 2 + 65
    scaled = square * Fraction(4) ** shift
    root = math.isqrt(math.floor(scaled))
    root |= root * root != scaled
    return float(root / Fraction(2) ** shift)
