"""Second moments of embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 13


def second_moment(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return sum_j t_j t_j^T: float32 [M, d] -> float64 [d, d]."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        total += block.T @ block
    return total


def square_root(moment: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return L [d, d] with L L^T = moment, a symmetric matrix without negative eigenvalues.

    f^T S f is the squared length of L^T f: a sum of squares, which loses no digits to cancellation.
    """
    values, vectors = np.linalg.eigh(moment)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float32)
