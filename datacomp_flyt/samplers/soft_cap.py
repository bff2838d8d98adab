"""Soft Cap Sampling (FLYT, section 3.6 and Algorithm 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.errors import InputError
from datacomp_flyt.samplers.checks import (
    MOST_DRAWS,
    check_batch_size,
    check_num_samples,
    check_pool,
    check_repetition_penalty,
)
from datacomp_flyt.samplers.race import race_counts
from datacomp_flyt.samplers.rounds import round_counts


def soft_cap_counts(
    scores: ArrayLike,
    uids: NDArray[np.void],
    num_samples: int,
    repetition_penalty: float,
    seed: int,
    batch_size: int = 1,
    *,
    num_workers: int = 1,
) -> NDArray[np.int32]:
    """Count the draws of each example by Soft Cap Sampling.

    An example is drawn with probability softmax(scores); each draw subtracts `repetition_penalty`
    from its score. With `batch_size` G, draws come in rounds of G different examples and the
    penalty is subtracted at the end of the round. G is a parameter of Algorithm 2: each G is
    another distribution of the counts, from which the sampler draws without approximation.
    Randomness comes from (seed, uid, draw) alone: permuting or splitting the pool permutes or
    splits the result.

    Args:
        scores: finite floats [M], log probabilities up to a constant.
        uids: `u8,u8` array [M], no uid twice.
        num_samples: N, the number of draws.
        repetition_penalty: alpha >= 0 (paper: 0.15 at medium scale, 0.5 at small).
        seed: any integer.
        batch_size: G, from 1 to M (paper: 100,000 at medium scale, 10,000 at small, to be fast).
        num_workers: threads.

    Returns:
        int32 array [M] that sums to N.

    Raises:
        InputError: an argument is out of its range.
    """
    scores, uids = check_pool(scores, uids)
    num_samples = check_num_samples(num_samples, len(scores))
    repetition_penalty = check_repetition_penalty(repetition_penalty)
    batch_size = check_batch_size(batch_size, len(scores))
    seed = check_integer(seed, "--seed")
    if batch_size == 1:
        return race_counts(scores, uids, num_samples, repetition_penalty, None, seed, num_workers)
    if len(scores) >= 2**32 or num_samples // batch_size >= MOST_DRAWS:
        raise InputError(
            f"{num_samples:,} draws of {len(scores):,} examples are too many for rounds of "
            f"{batch_size:,}: give --sampling_batch_size 1, which has no such limit and is faster"
        )
    return round_counts(
        scores, uids, num_samples, repetition_penalty, batch_size, seed, num_workers
    )
