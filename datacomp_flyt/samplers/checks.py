"""Checks of the arguments of samplers.

The samplers call them, and so does selection before it reads a pool. Messages name the flags.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datacomp_flyt.arguments import check_integer, check_number
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
    check_uid_dtype(uids)
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


def check_uid_dtype(uids: NDArray[Any]) -> None:
    """Raise InputError unless the dtype of uids is `u8,u8`."""
    if uids.dtype != UID_DTYPE:
        raise InputError(
            f"uids have dtype {uids.dtype}, wanted 'u8,u8' (two 64-bit halves): "
            "`datacomp_flyt.pool.uids.decode_uids` makes them from an Arrow array of text"
        )


def check_num_samples(num_samples: int, pool_size: int | None = None) -> int:
    """Return a number of draws.

    The draws of one example are counted in 32 bits, all of them in 64.

    Args:
        num_samples: the number of draws.
        pool_size: the number of examples; None if it is not yet known.

    Raises:
        InputError: it is no integer, or so many cannot be drawn from this number of examples.
    """
    num_samples = check_integer(num_samples, "--num_samples", least=1)
    most = max(MOST_DRAWS, _DRAWS_OF_EACH * (pool_size or 0))
    if pool_size is not None and num_samples > most:
        raise InputError(f"--num_samples is {num_samples:,}, wanted 1 to {most:,}")
    return num_samples


def check_repetition_penalty(repetition_penalty: float) -> float:
    """Return a penalty; raise InputError unless it is a finite number, 0 or more."""
    penalty = check_number(repetition_penalty, "--repetition_penalty")
    if not (penalty >= 0 and math.isfinite(penalty)):
        raise InputError(f"--repetition_penalty is {repetition_penalty}, wanted 0 or more")
    return penalty


def check_batch_size(batch_size: int, pool_size: int | None = None) -> int:
    """Return the number of draws in a round of Soft Cap Sampling.

    Args:
        batch_size: G.
        pool_size: the number of examples; None if it is not yet known.

    Raises:
        InputError: it is no integer, or below 1, or larger than the pool.
    """
    batch_size = check_integer(batch_size, "--sampling_batch_size", least=1)
    if pool_size is not None and batch_size > pool_size:
        raise InputError(
            f"--sampling_batch_size is {batch_size:,}, wanted 1 to {pool_size:,}: "
            "a round draws that many different examples of the pool"
        )
    return batch_size


def check_fraction(fraction: float, flag: str = "--fraction") -> float:
    """Return a fraction; raise InputError unless it is a number in (0, 1]."""
    value = check_number(fraction, flag)
    if not 0 < value <= 1:
        raise InputError(f"{flag} is {fraction}, wanted more than 0 and at most 1")
    return value
