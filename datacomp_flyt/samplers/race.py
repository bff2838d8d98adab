"""The race of independent clocks: Algorithm 2 with G = 1, hard cap and no cap, without a loop.

Give each example a clock that rings at rate exp(s - alpha * k) after k rings. Exponential clocks
have no memory, so whichever rings next does so with probability softmax(s - alpha * k): the order
of all rings *is* one-by-one sampling with a repetition penalty, and the subset is the N earliest
rings. A hard cap is a clock that stops after beta rings; no cap is alpha = 0.

    M   examples in the pool          alpha   repetition penalty
    N   rings wanted                  beta    frequency limit
    E_k exponential(1) variates, from (seed, uid, k)

Ring k + 1 of an example is at time T = exp(-s) * sum_{j<=k} E_j exp(alpha * j). In log space,
with R = sum_{j<=k} E_j exp(alpha * (j - k)), which neither over- nor underflows,

    log T = log R + alpha * k - s,      R <- R * exp(-alpha) + E_k.

Every example is simulated alone; all that they share is the time of the N-th ring. A sample of
the pool, chosen by hash, brackets that time; one pass over the pool counts rings before the
bracket and collects those inside it, and the exact N-th is picked among the collected. The
bracket decides speed, never the result.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.engines.threads import blocks, map_threads
from datacomp_flyt.samplers.clocks import exponentials, stream_keys

BLOCK = 1 << 16  # examples whose working arrays nearly fit a core's cache
_SAMPLE = 1 << 15  # examples that bracket the time of the N-th ring
_INSIDE = 1 << 16  # rings that are cheap to collect
_FEW, _SOON = 8, 16  # clocks left, and ring, from which on to follow one after the other

_EARLIEST = 37.0  # no clock rings before log time -_EARLIEST - s: the variates are above exp(-37)
_MOST = np.finfo(np.float64).max

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Clocks:
    """Examples as clocks: log rates [m] (float64), stream keys [m], and their law."""

    log_rates: Floats
    keys: NDArray[np.uint64]
    penalty: float
    limit: int

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> Clocks:
        return Clocks(self.log_rates[part], self.keys[part], self.penalty, self.limit)


@dataclass(frozen=True)
class Rings:
    """Single rings [n], to be put in exact order.

    `log_times + remainders` is the log time as an unevaluated sum of two floats, so that rings
    keep their order even where a score is so large that a float holds nothing beside it.
    """

    log_times: Floats
    remainders: Floats
    examples: Indices

    @classmethod
    def of(cls, log_residuals: Floats, log_rates: Floats, examples: Indices) -> Rings:
        log_times = log_residuals - log_rates
        part = log_times - log_residuals  # Knuth's TwoSum
        remainders = (log_residuals - (log_times - part)) - (log_rates + part)
        return cls(log_times, remainders, examples)

    @classmethod
    def concatenate(cls, parts: Sequence[Rings]) -> Rings:
        return cls(
            np.concatenate([np.empty(0), *(part.log_times for part in parts)]),
            np.concatenate([np.empty(0), *(part.remainders for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.examples for part in parts)]),
        )

    def __len__(self) -> int:
        return len(self.log_times)

    def earliest(self, number: int, uids: NDArray[np.void]) -> Indices:
        """Examples [number] of the earliest rings; where times are equal, smaller uids first."""
        if number == 0 or number == len(self):
            return self.examples[:number]
        last = np.partition(self.log_times, number - 1)[number - 1]
        sure = self.examples[self.log_times < last]
        tied = np.flatnonzero(self.log_times == last)
        names = uids[self.examples[tied]]
        order = np.lexsort((names["f1"], names["f0"], self.remainders[tied]))
        return np.concatenate([sure, self.examples[tied[order[: number - len(sure)]]]])


class _Missed(Exception):
    """The bracket does not hold the N-th ring, or holds too much besides."""


def race_counts(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    num_samples: int,
    repetition_penalty: float,
    frequency_limit: int | None,
    seed: int,
    num_workers: int = 1,
) -> NDArray[np.int32]:
    """How often each example is among the `num_samples` earliest rings.

    Args:
        scores: finite log rates [M], any offset and range.
        uids: `u8,u8` array [M].
        num_samples: N, at most M * frequency_limit.
        repetition_penalty: alpha >= 0, taken off the score at each ring.
        frequency_limit: beta, rings after which a clock stops; None for no limit.
        seed: names the random clocks together with the uids.
        num_workers: threads; they do not change the result.

    Returns:
        int32 array [M] that sums to `num_samples`.
    """
    limit = min(frequency_limit or num_samples, num_samples)
    clocks_of = clocks_of_pool(scores, uids, repetition_penalty, limit, seed)
    sample = sample_clocks(clocks_of, len(scores), num_workers)
    if len(sample) < len(scores):
        expected = num_samples * len(sample) / len(scores)
        low, _ = search_log_time(sample, 0.9 * expected, 0.95 * expected)
        _, high = search_log_time(sample, 1.05 * expected, 1.1 * expected)
        most_inside = num_samples // 2 + _INSIDE
        with contextlib.suppress(_Missed):
            return _race(clocks_of, uids, num_samples, low, high, most_inside, num_workers)
    # a small pool, or one whose mass sits in so few examples that the sample missed them
    pool = clocks_of(slice(0, len(scores)))
    width = max(_INSIDE, num_samples // 8)
    low, _ = search_log_time(pool, num_samples - width, num_samples)
    _, high = search_log_time(pool, num_samples, num_samples + width)
    most_inside = num_samples * len(scores)
    return _race(pool.__getitem__, uids, num_samples, low, high, most_inside, num_workers)


def clocks_of_pool(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    penalty: float,
    limit: int,
    seed: int,
    origin: float = 0.0,
) -> Callable[[slice], Clocks]:
    """Makes the clocks of any part of a pool, log rates counted from `origin`."""

    def clocks_of(part: slice) -> Clocks:
        log_rates = scores[part].astype(np.float64, copy=False)
        if origin:
            with np.errstate(over="ignore"):
                log_rates = log_rates - origin
            np.clip(log_rates, -_MOST, _MOST, out=log_rates)
        return Clocks(log_rates, stream_keys(uids[part], seed), penalty, limit)

    return clocks_of


def sample_clocks(clocks_of: Callable[[slice], Clocks], length: int, num_workers: int) -> Clocks:
    """Some of the pool, chosen by stream key alone: no order or split changes it.

    A pool that is hardly larger than the sample is taken whole.
    """
    if length < 2 * _SAMPLE:
        return clocks_of(slice(0, length))
    ceiling = np.uint64(_SAMPLE / length * 2.0**64)

    def pick(block: slice) -> Clocks:
        clocks = clocks_of(block)
        return clocks[clocks.keys < ceiling]

    parts = map_threads(pick, blocks(length, BLOCK), num_workers)
    log_rates = np.concatenate([part.log_rates for part in parts])
    keys = np.concatenate([part.keys for part in parts])
    return Clocks(log_rates, keys, parts[0].penalty, parts[0].limit)


def search_log_time(clocks: Clocks, at_least: float, at_most: float) -> tuple[float, float]:
    """A log time, twice, by which `at_least` to `at_most` rings of `clocks` have happened.

    Where too many rings share one float time there is none: then two neighbours among the
    floats, by the first of which fewer have happened and by the second of which more have.
    """

    def count(log_time: float) -> int:
        total = 0
        for chunk in blocks(len(clocks), BLOCK):
            below, _ = _ring(clocks[chunk], log_time, log_time, at_most - total)
            total += int(below.sum())
            if total > at_most:
                break
        return total

    if at_least <= 0:
        return -math.inf, -math.inf
    each = at_least / len(clocks)
    guess = math.log(each) + clocks.penalty * each - float(clocks.log_rates.max())
    low, high, step, rung = -math.inf, guess, 0.5, -1
    while (rings := count(high)) < at_least:
        later = clocks.log_rates[clocks.log_rates < -_EARLIEST - high - step]
        if len(later) and rings == rung:  # nothing rings here: on to the next clock to wake
            low, high, step = high, -_EARLIEST - float(later.max()), 0.5
        else:
            low, high, step = high, high + step, 2 * step
        rung = rings
    while rings > at_most:
        middle = low / 2 + high / 2
        if low == -math.inf:
            middle = min(high - step, math.nextafter(high, low))
        if not low < middle < high:
            return low, high
        step *= 2
        if (fewer := count(middle)) < at_least:
            low = middle
        else:
            high, rings = middle, fewer
    return high, high


def _race(
    clocks_of: Callable[[slice], Clocks],
    uids: NDArray[np.void],
    num_samples: int,
    low: float,
    high: float,
    most_inside: int,
    num_workers: int,
) -> NDArray[np.int32]:
    """Counts [M] of the `num_samples` earliest rings, the last of which is in (low, high]."""
    counts = np.zeros(len(uids), np.int32)
    below, inside, lock = 0, 0, threading.Lock()

    def run(block: slice) -> Rings:
        nonlocal below, inside
        counts[block], rings = _ring(clocks_of(block), low, high, num_samples + most_inside)
        rings.examples[:] += block.start
        with lock:
            below += int(counts[block].sum())
            inside += len(rings)
            if below > num_samples or inside > most_inside:
                raise _Missed
        return rings

    progress = "drawing" if len(uids) > 256 * BLOCK else None
    parts = map_threads(run, blocks(len(uids), BLOCK), num_workers, progress, "block")
    if below + inside < num_samples:
        raise _Missed
    rings = Rings.concatenate(parts)
    drawn, times = np.unique(rings.earliest(num_samples - below, uids), return_counts=True)
    counts[drawn] += times.astype(np.int32)
    return counts


def _ring(
    clocks: Clocks, low: float, high: float, stop_after: float
) -> tuple[NDArray[np.int32], Rings]:
    """Rings of a chunk of clocks: how many by log time `low` [m], and each one in (low, high].

    Gives up, with more than `stop_after` rings, once there are that many.
    """
    counts = np.zeros(len(clocks), np.int32)
    inside: list[Rings] = []
    examples, log_rates, keys = np.arange(len(clocks)), clocks.log_rates, clocks.keys
    residuals, decay = exponentials(keys, 0), math.exp(-clocks.penalty)
    number, total = 0, 0
    while (
        (len(examples) > _FEW or len(examples) > 0 and number < _SOON)
        and number < clocks.limit
        and total <= stop_after
    ):
        log_residuals = np.log(residuals)
        log_residuals += clocks.penalty * number
        log_times = log_residuals - log_rates
        ringing = np.flatnonzero(log_times <= high)
        if len(ringing) < len(examples):
            examples, log_rates, keys = examples[ringing], log_rates[ringing], keys[ringing]
            residuals, log_residuals = residuals[ringing], log_residuals[ringing]
            log_times = log_times[ringing]
        early = log_times <= low
        counts[examples] += early
        if low < high:
            late = ~early
            inside.append(Rings.of(log_residuals[late], log_rates[late], examples[late]))
        total += len(examples)
        number += 1
        residuals *= decay
        residuals += exponentials(keys, number)
    if total > stop_after:
        return counts, Rings.concatenate(inside)
    for example, residual in zip(examples.tolist(), residuals.tolist(), strict=True):
        clock = clocks[example : example + 1]
        for log_residuals in _ring_alone(clock, number, residual, high):
            early = log_residuals - clock.log_rates <= low
            counts[example] += np.count_nonzero(early)
            rings = log_residuals[~early]
            if low < high and len(rings):
                inside.append(Rings.of(rings, clock.log_rates, np.full(len(rings), example)))
            total += len(log_residuals)
            if total > stop_after:
                break
    return counts, Rings.concatenate(inside)


def _ring_alone(clock: Clocks, number: int, residual: float, high: float) -> Iterator[Floats]:
    """log R + alpha * k of the rings of one clock up to log time `high`, from ring `number` on.

    Python's floats round as NumPy's do, so following a clock here or in `_ring` is the same.
    """
    decay, size = math.exp(-clock.penalty), 32
    while number < clock.limit:
        numbers = np.arange(number, min(number + size, clock.limit), dtype=np.uint64)
        later = exponentials(clock.keys, numbers[1:]).tolist()
        residuals = list(accumulate(later, lambda r, e: r * decay + e, initial=residual))
        log_residuals = np.log(residuals)
        log_residuals += clock.penalty * numbers
        ringing = log_residuals - clock.log_rates <= high
        if not ringing.all():
            yield log_residuals[: int(ringing.argmin())]
            return
        yield log_residuals
        number += len(numbers)
        following = exponentials(clock.keys, number)
        residual = residuals[-1] * decay + float(following[0])
        size = min(2 * size, 1 << 14)
