"""Plain sampling with replacement, "No Cap" of FLYT's Figure 3."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.samplers.checks import check_num_samples, check_pool
from datacomp_flyt.samplers.race import race_counts


def no_cap_counts(
    scores: ArrayLike,
    uids: NDArray[np.void],
    num_samples: int,
    seed: int,
    *,
    num_workers: int = 1,
) -> NDArray[np.int32]:
    """Count draws from softmax(scores) with replacement.

    Args:
        scores: finite floats [M], log probabilities up to a constant.
        uids: `u8,u8` array [M], no uid twice.
        num_samples: N, the number of draws.
        seed: any integer.
        num_workers: threads.

    Returns:
        int32 array [M] that sums to N.

    Raises:
        InputError: an argument is out of its range.
    """
    scores, uids = check_pool(scores, uids)
    num_samples = check_num_samples(num_samples, len(scores))
    seed = check_integer(seed, "--seed")
    return race_counts(scores, uids, num_samples, 0.0, None, seed, num_workers)
