"""Hard Cap Sampling (FLYT, section 4.3 and Figure 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.errors import InputError
from datacomp_flyt.samplers.checks import check_num_samples, check_pool
from datacomp_flyt.samplers.race import race_counts


def hard_cap_counts(
    scores: ArrayLike,
    uids: NDArray[np.void],
    num_samples: int,
    frequency_limit: int,
    seed: int,
    *,
    num_workers: int = 1,
) -> NDArray[np.int32]:
    """Count draws when the probability of an example is 0 once it has reached the frequency limit.

    Args:
        scores: finite floats [M], log probabilities up to a constant.
        uids: `u8,u8` array [M], no uid twice.
        num_samples: N, the number of draws.
        frequency_limit: the most draws of one example, 1 or more (the paper's beta, 5 to 25).
        seed: any integer.
        num_workers: threads.

    Returns:
        int32 array [M] that sums to N, none above `frequency_limit`.

    Raises:
        InputError: an argument is out of its range, or frequency_limit * M < N.
    """
    scores, uids = check_pool(scores, uids)
    num_samples = check_num_samples(num_samples, len(scores))
    frequency_limit = check_integer(frequency_limit, "--frequency_limit", least=1)
    if frequency_limit * len(scores) < num_samples:
        raise InputError(
            f"--frequency_limit {frequency_limit} lets {len(scores):,} examples be drawn "
            f"{frequency_limit * len(scores):,} times, fewer than --num_samples {num_samples:,}: "
            "raise --frequency_limit or lower --num_samples"
        )
    seed = check_integer(seed, "--seed")
    return race_counts(scores, uids, num_samples, 0.0, frequency_limit, seed, num_workers)
