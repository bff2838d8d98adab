"""Examples as exponential clocks, whose randomness comes from (seed, uid, draw)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.files.memmap_arrays import is_memory_mapped, order_statistic
from datacomp_flyt.pool.uid_randomness import random_bits, stream_keys
from datacomp_flyt.threads import blocks

BLOCK = 1 << 17  # examples at a time: few enough for caches, enough that threads mostly run NumPy
_SAMPLE = 1 << 14  # smallest sample of examples that brackets the time of the N-th ring
_STRETCHES = 64
_MOST = float(np.finfo(np.float64).max)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clocks:
    """Examples as clocks.

    Attributes:
        log_rates: float64 [m].
        keys: keys of the streams of random numbers [m], see `uid_randomness`.
        penalty: alpha, subtracted from the log rate at each ring.
        frequency_limit: the number of rings after which a clock stops.
    """

    log_rates: Floats
    keys: NDArray[np.uint64]
    penalty: float
    frequency_limit: int

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: slice) -> Clocks:
        return Clocks(self.log_rates[part], self.keys[part], self.penalty, self.frequency_limit)

    def log_rate_of_rank(self, rank: int) -> float:
        """Return the log rate of a rank, from 0 for the smallest."""
        return order_statistic(self.log_rates, rank)

    def fastest_below(self, end: float) -> float:
        """Return the largest log rate below `end`; -infinity if there is none."""
        rates = self.log_rates
        return float(rates.max(initial=-math.inf, where=rates < end))


@dataclass(frozen=True)
class ClockPool:
    """All examples of a pool; slices of it are `Clocks`. Log rates are relative to `origin`."""

    scores: NDArray[np.floating]
    uids: NDArray[np.void]
    penalty: float
    frequency_limit: int
    seed: int
    origin: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, part: slice | NDArray[np.int64]) -> Clocks:
        log_rates = np.ascontiguousarray(self.scores[part], np.float64)
        if self.origin:
            with np.errstate(over="ignore"):
                log_rates = log_rates - self.origin
            np.clip(log_rates, -_MOST, _MOST, out=log_rates)
        keys = stream_keys(np.ascontiguousarray(self.uids[part]), self.seed)
        return Clocks(log_rates, keys, self.penalty, self.frequency_limit)

    def log_rate_of_rank(self, rank: int) -> float:
        """See `Clocks.log_rate_of_rank`."""
        return order_statistic(self.scores, rank) - self.origin

    def fastest_below(self, end: float) -> float:
        """See `Clocks.fastest_below`; some examples are read at a time."""
        return max(self[part].fastest_below(end) for part in blocks(len(self), BLOCK))

    def sample(self) -> Clocks:
        """Return every k-th example, or the whole pool if it is smaller than twice a sample.

        Of a pool in files, return contiguous stretches instead. They are as good a sample, since
        the uids that order a pool are hashes, and they are read from few parts of the disk.
        """
        size = min(max(_SAMPLE, len(self) // 64), 64 * _SAMPLE)
        if size < len(self) and is_memory_mapped(self.scores):
            starts = np.arange(_STRETCHES) * (len(self) // _STRETCHES)
            stretch = np.arange(size // _STRETCHES)
            return self[(starts[:, np.newaxis] + stretch).ravel()]
        return self[slice(0, None, max(len(self) // size, 1))]


def exponentials(keys: NDArray[np.uint64], draw: int | NDArray[np.uint64]) -> NDArray[np.float64]:
    """Compute the exponential(1) variate with index `draw` (0-based) of each stream.

    A variate is -log(u), where u takes 2**52 equally likely values in (0, 1), so it lies between
    1.1e-16 and 36.7.

    Args:
        keys: uint64 array [n].
        draw: one draw number for all, or a uint64 array [n].

    Returns:
        float64 array [n], all positive and finite.
    """
    bits = random_bits(keys, draw)
    bits >>= np.uint64(12)
    uniforms = bits.astype(np.float64)
    uniforms += 0.5
    uniforms *= 2.0**-52
    np.log(uniforms, out=uniforms)
    return np.negative(uniforms, out=uniforms)
