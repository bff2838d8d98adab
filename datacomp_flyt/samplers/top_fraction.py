"""The examples with the highest scores: threshold filtering."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.memmap_arrays import order_statistic, zeros_like_storage
from datacomp_flyt.pool.subset import first_out_of_order
from datacomp_flyt.samplers.checks import check_fraction, check_pool
from datacomp_flyt.threads import blocks

_BLOCK = 1 << 20


def top_fraction_counts(
    scores: ArrayLike,
    uids: NDArray[np.void],
    fraction: float,
    keep_ties: bool = False,
    pool_size: int | None = None,
) -> NDArray[np.int32]:
    """Return 1 for each example of the top fraction, 0 for the others.

    Exactly n = int(fraction * M) examples are kept. If several examples have the lowest kept score,
    those with the smallest uids are kept.

    Args:
        scores: finite floats [M].
        uids: `u8,u8` array [M].
        fraction: in (0, 1].
        keep_ties: DataComp's rule instead (`clip_score`): the threshold is the score at rank n,
            counted from 0, and everything at least as high is kept: n + 1 examples or more.
        pool_size: M' in n = int(fraction * M'); None for M, the number of scores.

    Returns:
        int32 array [M] of 0 and 1.

    Raises:
        InputError: an argument is out of its range, or the fraction keeps nothing.
    """
    scores, uids = check_pool(scores, uids)
    fraction = check_fraction(fraction)
    pool_size = len(scores) if pool_size is None else pool_size
    num_kept = int(fraction * pool_size)
    if num_kept > len(scores):
        raise InputError(
            f"--fraction {fraction} of {pool_size:,} examples is {num_kept:,} and only "
            f"{len(scores):,} of them can be kept: lower it"
        )
    if keep_ties:
        num_kept = min(num_kept + 1, len(scores))
    if num_kept == 0:
        raise InputError(f"--fraction {fraction} of {pool_size:,} examples keeps none: raise it")
    threshold = order_statistic(scores, len(scores) - num_kept)
    counts, parts = zeros_like_storage(scores, np.int32), blocks(len(scores), _BLOCK)
    left, num_tied = num_kept, 0
    for part in parts:
        counts[part] = scores[part] >= threshold if keep_ties else scores[part] > threshold
        left -= int(np.count_nonzero(counts[part]))
        num_tied += int(np.count_nonzero(scores[part] == threshold))
    if keep_ties:
        return counts
    tied: Iterable[NDArray[np.int64]]
    tied = (np.flatnonzero(scores[part] == threshold) + part.start for part in parts)
    if left < num_tied and first_out_of_order(uids) is not None:
        rows = np.concatenate(list(tied))
        tied = [rows[np.lexsort((uids["f1"][rows], uids["f0"][rows]))]]
    for rows in tied:  # block by block if the pool is sorted, since it may exceed memory
        counts[rows[:left]] = 1
        left -= len(rows[:left])
    return counts
