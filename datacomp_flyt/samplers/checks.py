"""Checks of the arguments that all samplers have."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.threads import blocks

MOST_DRAWS = 2**31 - 1
"""The most draws of one example, which are counted in 32 bits."""

_DRAWS_OF_EACH = 100  # draws per example, on average, that are always allowed
_BLOCK = 1 << 20


def check_pool(
    scores: ArrayLike, uids: NDArray[np.void]
) -> tuple[NDArray[np.floating], NDArray[np.void]]:
    """Return scores as a float array [M] and uids as a contiguous `u8,u8` array [M].

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
    if not len(scores):
        raise InputError("there is no example to sample from: the pool is empty")
    for part in blocks(len(scores), _BLOCK):
        # min and max pass a NaN or an infinity on, with no array of truth values
        if not np.isfinite(scores[part].min()) or not np.isfinite(scores[part].max()):
            row = part.start + int(np.flatnonzero(~np.isfinite(scores[part]))[0])
            raise InputError(
                f"score {row} is {scores[row]}: leave out examples without finite scores"
            )
    return scores, np.ascontiguousarray(uids)


def check_num_samples(num_samples: int, pool_size: int) -> None:
    """Raise InputError unless `num_samples` can be drawn from this number of examples.

    The draws of one example are counted in 32 bits, all of them in 64.
    """
    most = max(MOST_DRAWS, _DRAWS_OF_EACH * pool_size)
    if not 1 <= num_samples <= most:
        raise InputError(f"num_samples is {num_samples}, wanted 1 to {most:,}")
