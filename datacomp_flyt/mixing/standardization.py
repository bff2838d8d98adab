"""Zero mean and unit standard deviation over all examples (FLYT, section 4.2 and C.5)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.threads import blocks, map_threads

_BLOCK = 1 << 16  # summed pairwise within a block, exactly across blocks: workers do not matter


def mean_and_std(
    values: NDArray[np.floating], column: str, num_workers: int = 1
) -> tuple[float, float]:
    """Return mean and standard deviation (ddof 0) of the finite values of a column [M], in float64.

    Raises:
        InputError: the column is constant or empty, so that it cannot be standardised.
    """

    def total(center: float, power: int) -> tuple[float, int]:
        def part(block: slice) -> tuple[float, int]:
            finite = values[block].astype(np.float64)
            if not math.isfinite(finite.sum()):
                finite = finite[np.isfinite(finite)]
            finite -= center
            return float((finite**power).sum()), len(finite)

        parts = map_threads(part, blocks(len(values), _BLOCK), num_workers)
        return math.fsum(value for value, _ in parts), sum(count for _, count in parts)

    sum_of_values, num_finite = total(0.0, 1)
    mean = sum_of_values / max(num_finite, 1)
    sum_of_squares, _ = total(mean, 2)
    std = math.sqrt(sum_of_squares / max(num_finite, 1))
    if std <= 1e-12 * abs(mean) or not math.isfinite(std):
        raise InputError(
            f"column {column!r} has standard deviation {std:.3g} around {mean:.3g}, so it cannot "
            "be standardised: leave it out or mend it"
        )
    return mean, std
