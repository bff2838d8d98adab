"""Wrong versions of Algorithm 2 that the tests of the samplers must reject."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.oracles.algorithm2 import softmax


def with_replacement_inside_a_round(
    scores: npt.NDArray[Any], num_samples: int, alpha: float, rng: np.random.Generator, size: int
) -> npt.NDArray[Any]:
    """Return counts [M] of a wrong Algorithm 2: an example may be drawn twice in a round."""
    current, counts, left = scores.copy(), np.zeros(len(scores), dtype=int), num_samples
    while left > 0:
        drawn = rng.choice(len(scores), size=min(size, left), p=softmax(current))
        np.add.at(counts, drawn, 1)
        np.subtract.at(current, drawn, alpha)
        left -= len(drawn)
    return counts
