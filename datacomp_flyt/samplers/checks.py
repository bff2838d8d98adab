"""What every sampler asks of its arguments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uids import UID_DTYPE


def check_pool(
    scores: ArrayLike, uids: NDArray[np.void]
) -> tuple[NDArray[np.floating], NDArray[np.void]]:
    """Scores as a float array [M] and uids as a contiguous `u8,u8` array [M].

    Raises:
        InputError: the lengths differ, the pool is empty, the dtype of uids is another, or a score
            is NaN or infinite.
    """
    scores = np.asarray(scores)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    uids = np.asarray(uids)
    if uids.dtype != UID_DTYPE:
        raise InputError(f"uids have dtype {uids.dtype}, wanted 'u8,u8' (pool.uids.decode_uids)")
    if scores.ndim != 1 or scores.shape != uids.shape:
        raise InputError(f"scores of shape {scores.shape} do not fit uids of shape {uids.shape}")
    if len(scores) >= 2**32:
        raise InputError(f"{len(scores):,} examples are too many at once, wanted below 2**32")
    if not len(scores):
        raise InputError("there is no example to sample from: the pool is empty")
    # min and max pass a NaN or an infinity on, with no array of truth values
    if not np.isfinite(scores.min()) or not np.isfinite(scores.max()):
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(f"score {row} is {scores[row]}: leave out examples without finite scores")
    return scores, np.ascontiguousarray(uids)


def check_num_samples(num_samples: int) -> None:
    """Raises InputError unless `num_samples` can be drawn and counted in 32 bits."""
    if not 1 <= num_samples < 2**31:
        raise InputError(f"num_samples is {num_samples}, wanted 1 to {2**31 - 1:,}")
