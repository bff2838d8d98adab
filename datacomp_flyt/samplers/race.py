"""The race of independent clocks: Algorithm 2 with G = 1, hard cap and no cap, without a loop.

Give each example a clock that rings at rate exp(s - alpha * k) after k rings. Exponential clocks
have no memory, so whichever rings next does so with probability softmax(s - alpha * k): the order
of all rings *is* one-by-one sampling with a repetition penalty, and the subset is the N earliest
rings. A hard cap is a clock that stops after `frequency_limit` rings; no cap is alpha = 0.

    M   examples in the pool          alpha   repetition penalty
    N   rings wanted
    E_k exponential(1) variates, from (seed, uid, k)

Ring k + 1 of an example, where k counts from 0, is at time
T = exp(-s) * sum_{j<=k} E_j exp(alpha * j). Write R for sum_{j<=k} E_j exp(alpha * (j - k)). It is
computed by R <- R * exp(-alpha) + E_k, which cannot over- or underflow. Then

    log T = log R + alpha * k - s.

Every example is simulated alone; all that they share is the time of the N-th ring. A sample of the
pool gives an interval (the bracket) that contains that time with high probability. One pass over
the pool counts rings before the bracket and collects those inside it, and the exact N-th is picked
among the collected. If the bracket misses it, a search over the pool replaces the sample, so the
bracket decides speed, never the result.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.memmap_arrays import Chunk, SpillFile, zeros_like_storage
from datacomp_flyt.samplers import checks
from datacomp_flyt.samplers.clocks import BLOCK, ClockPool, Clocks, Floats, exponentials
from datacomp_flyt.threads import blocks, map_threads

_INSIDE = 1 << 16  # rings that are cheap to collect
_FEW = 1 << 11  # with at most this many clocks left, simulate several rings per NumPy call
_MOST_AHEAD = 1 << 15  # at most this many rings of all these clocks together in one call

_BINS = 1 << 14  # histogram bins of ring times: only the bin with the N-th ring is sorted
_RING = np.dtype([("log_time", "f8"), ("remainder", "f8"), ("example", "i8")])

_EARLIEST = -37.0  # variates exceed exp(-37), so no ring has log time below -37 - s

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Rings:
    """Single rings [n], to be put in exact order.

    The log time is `log_times + remainders`, stored as two floats, which together have twice the
    precision of one. So rings keep their order even for a score so large that adding log R to it is
    lost to rounding.
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

    @classmethod
    def unpacked(cls, rings: NDArray[np.void]) -> Rings:
        return cls(rings["log_time"].copy(), rings["remainder"].copy(), rings["example"].copy())

    def packed(self) -> NDArray[np.void]:
        """Return the rings as one structured array, for a `SpillFile`."""
        rings = np.empty(len(self), _RING)
        rings["log_time"], rings["remainder"] = self.log_times, self.remainders
        rings["example"] = self.examples
        return rings

    def __len__(self) -> int:
        return len(self.log_times)

    def earliest(self, num_rings: int, uids: NDArray[np.void]) -> Indices:
        """Return the examples of the `num_rings` earliest rings; ties go to the smaller uid."""
        if num_rings == 0 or num_rings == len(self):
            return self.examples[:num_rings]
        last = np.partition(self.log_times, num_rings - 1)[num_rings - 1]
        sure = self.examples[self.log_times < last]
        tied = np.flatnonzero(self.log_times == last)
        names = uids[self.examples[tied]]
        order = np.lexsort((names["f1"], names["f0"], self.remainders[tied]))
        return np.concatenate([sure, self.examples[tied[order[: num_rings - len(sure)]]]])


class _Missed(Exception):
    """The bracket does not contain the N-th ring, or contains too many rings."""


def race_counts(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    num_samples: int,
    repetition_penalty: float,
    frequency_limit: int | None,
    seed: int,
    num_workers: int = 1,
) -> NDArray[np.int32]:
    """Count the rings of each example among the `num_samples` earliest of all.

    Args:
        scores: finite log rates [M], any offset and range.
        uids: `u8,u8` array [M].
        num_samples: N, at most M * frequency_limit.
        repetition_penalty: alpha >= 0, subtracted from the score at each ring.
        frequency_limit: the number of rings after which a clock stops; None for no limit.
        seed: selects the random numbers together with the uids.
        num_workers: threads; they do not change the result.

    Returns:
        int32 array [M] that sums to `num_samples`.

    Raises:
        InputError: an example rings more often than 32 bits count.
    """
    # If N or the frequency limit is below 2^31, no count can overflow. Otherwise clocks stop at
    # 2^31 - 1 rings, and a clock that has reached them is an error.
    if num_samples <= checks.MOST_DRAWS or (frequency_limit or num_samples) <= checks.MOST_DRAWS:
        most = min(frequency_limit or num_samples, num_samples)
        return _counts(scores, uids, num_samples, repetition_penalty, most, seed, num_workers)
    counts = _counts(
        scores, uids, num_samples, repetition_penalty, checks.MOST_DRAWS, seed, num_workers
    )
    if counts.max() == checks.MOST_DRAWS:  # a clock that was stopped
        raise InputError(
            f"one example would be drawn more than {checks.MOST_DRAWS - 1:,} times: lower "
            "--num_samples, or make the scores more equal"
        )
    return counts


def _counts(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    num_samples: int,
    repetition_penalty: float,
    frequency_limit: int,
    seed: int,
    num_workers: int,
) -> NDArray[np.int32]:
    pool = ClockPool(scores, uids, repetition_penalty, frequency_limit, seed)
    sample = pool.sample()
    whole: Clocks | ClockPool = sample
    if len(sample) < len(pool):
        low, high = _bracket(sample, num_samples * len(sample) / len(pool))
        with contextlib.suppress(_Missed):
            return _race(pool, num_samples, low, high, num_samples // 2 + _INSIDE, num_workers)
        whole = pool
    # The pool is small, or the sample missed the few examples that get most of the rings.
    width = max(_INSIDE, num_samples // 8)
    low, _ = search_log_time(whole, num_samples - width, num_samples)
    _, high = search_log_time(whole, num_samples, num_samples + width)
    return _race(pool, num_samples, low, high, num_samples * len(pool), num_workers)


def _bracket(sample: Clocks, expected: float) -> tuple[float, float]:
    """Return the log times 4.5 standard errors before and after `expected` rings of a sample."""
    _, last = search_log_time(sample, 1.3 * expected + 30, 2 * expected + 60)
    _, rings = _ring(sample, -math.inf, last, math.inf)
    times = np.sort(rings.log_times)
    by_then = rings.log_times <= times[min(int(expected), len(times) - 1)]
    counts = np.bincount(rings.examples[by_then])
    error = math.sqrt(float(np.square(counts, dtype=np.float64).sum()) + 1)
    before, after = int(expected - 4.5 * error), int(expected + 4.5 * error) + 1
    low = float(times[before]) if before > 0 else -math.inf
    return low, float(times[after]) if after < len(times) else last


def search_log_time(
    clocks: Clocks | ClockPool, at_least: float, at_most: float
) -> tuple[float, float]:
    """Return a pair (low, high) of log times of `clocks`.

    Normally low = high = t, and between `at_least` and `at_most` rings have happened by t. If too
    many rings share one float time, no such t exists. Then low and high are neighbouring floats:
    fewer rings have happened by low, and more by high.
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
    if at_least >= len(clocks) * clocks.frequency_limit:
        return math.inf, math.inf
    each = at_least / len(clocks)
    typical = clocks.log_rate_of_rank(len(clocks) // 2)
    low, step, rings_before = _EARLIEST - clocks.fastest_below(math.inf), 0.25, -1
    high = max(math.log(each) + clocks.penalty * each - typical, low)
    while (rings := count(high)) < at_least:
        later = -math.inf
        if rings == rings_before:
            # no new ring in this step: jump to the time when the next slower clock can ring
            later = clocks.fastest_below(_EARLIEST - high - step)
        if later > -math.inf:
            low, high, step = high, _EARLIEST - later, 0.25
        else:
            low, high, step = high, high + step, 2 * step
        rings_before = rings
    # the first guess, or a jump, was already late enough, usually by little: go back in small steps
    near = step == 0.25
    while rings > at_most:
        middle = high - step if near and low < high - step else _between(low, high)
        if not low < middle < high:
            return low, high
        step, near = 2 * step, near and step < 64
        if (fewer := count(middle)) < at_least:
            low, near = middle, False
        else:
            high, rings = middle, fewer
    return high, high


def _between(low: float, high: float) -> float:
    """Return the middle of two floats; of distant ones, on the scale of sign(x) * log(1 + |x|)."""
    if high / 2 - low / 2 < 64:
        return low / 2 + high / 2
    ends = [math.copysign(math.log1p(abs(end)), end) for end in (low, high)]
    middle = (ends[0] + ends[1]) / 2
    return math.copysign(math.expm1(abs(middle)), middle)


def _race(
    pool: ClockPool, num_samples: int, low: float, high: float, most_inside: int, num_workers: int
) -> NDArray[np.int32]:
    """Count [M] the `num_samples` earliest rings, the last of which is in (low, high]."""
    counts = zeros_like_storage(pool.scores, np.int32)
    spill_file = SpillFile(pool.scores, _RING)
    below, inside, lock = 0, 0, threading.Lock()

    def run(block: slice) -> Chunk:
        nonlocal below, inside
        counts[block], rings = _ring(pool[block], low, high, num_samples + most_inside)
        rings.examples[:] += block.start
        with lock:
            below += int(counts[block].sum())
            inside += len(rings)
            if below > num_samples or inside > most_inside:
                raise _Missed
            return spill_file.put(rings.packed())

    progress = "drawing" if len(pool) > 512 * BLOCK else None
    chunks = map_threads(run, blocks(len(pool), BLOCK), num_workers, progress, "block")
    if below + inside < num_samples:
        raise _Missed
    _count_earliest(counts, spill_file, chunks, num_samples - below, pool.uids)
    return counts


def _count_earliest(
    counts: NDArray[np.int32],
    spill_file: SpillFile,
    chunks: Sequence[Chunk],
    num_rings: int,
    uids: NDArray[np.void],
) -> None:
    """Add 1 to the counts [M] for each of the `num_rings` earliest rings in a spill file.

    A histogram of their times finds the bin that contains the last of them; only the rings of this
    bin are sorted.
    """
    chunks = [chunk for chunk in chunks if chunk.length]
    if not num_rings or not chunks:
        return
    ends = [(times.min(), times.max()) for times in (spill_file.get(p)["log_time"] for p in chunks)]
    start, stop = float(min(ends)[0]), float(max(end for _, end in ends))
    # halve first: stop - start may overflow
    width = stop / 2 - start / 2

    def bins(rings: NDArray[np.void]) -> NDArray[np.int64]:
        if not 0 < width < math.inf:
            return np.zeros(len(rings), np.int64)
        return np.minimum((rings["log_time"] / 2 - start / 2) / width * _BINS, _BINS - 1).astype(
            np.int64
        )

    sizes = np.zeros(_BINS, np.int64)
    for chunk in chunks:
        sizes += np.bincount(bins(spill_file.get(chunk)), minlength=_BINS)
    last = int(np.searchsorted(np.cumsum(sizes), num_rings))
    undecided = []
    for chunk in chunks:
        rings = spill_file.get(chunk)
        numbers = bins(rings)
        np.add.at(counts, rings["example"][numbers < last], np.int32(1))
        undecided.append(rings[numbers == last])
    rest = Rings.unpacked(np.concatenate(undecided))
    chosen = rest.earliest(num_rings - int(sizes[:last].sum()), uids)
    np.add.at(counts, np.sort(chosen), np.int32(1))


def _ring(
    clocks: Clocks, low: float, high: float, stop_after: float
) -> tuple[NDArray[np.int32], Rings]:
    """Ring a block of clocks: count rings by log time `low` [m], and return those in (low, high].

    It stops once there are more than `stop_after` rings.
    """
    counts = np.zeros(len(clocks), np.int32)
    inside: list[Rings] = []
    examples, log_rates, keys = np.arange(len(clocks)), clocks.log_rates, clocks.keys
    residuals, decay = exponentials(keys, 0), math.exp(-clocks.penalty)
    num_rung, total = 0, 0
    while len(examples) > _FEW and num_rung < clocks.frequency_limit:
        log_residuals = np.log(residuals)
        log_residuals += clocks.penalty * num_rung
        log_times = log_residuals - log_rates
        ringing = np.flatnonzero(log_times <= high)
        if len(ringing) < len(examples):
            examples, log_rates = examples.take(ringing), log_rates.take(ringing)
            keys, residuals = keys.take(ringing), residuals.take(ringing)
            log_times = log_times.take(ringing)
        counts[examples] += 1
        late = np.flatnonzero(log_times > low)
        if len(late):
            log_residuals = log_residuals[ringing[late]]
            inside.append(Rings.of(log_residuals, log_rates[late], examples[late]))
            counts[examples[late]] -= 1
        num_rung += 1
        total += len(examples)
        if total > stop_after:
            return counts, Rings.concatenate(inside)
        residuals *= decay
        residuals += exponentials(keys, num_rung)
    ahead = 4
    while len(examples) and num_rung < clocks.frequency_limit and total <= stop_after:
        few = Clocks(log_rates, keys, clocks.penalty, clocks.frequency_limit)
        log_residuals, following = _rings_ahead(few, residuals, num_rung, ahead)
        ahead = 2 * ahead
        log_times = log_residuals - log_rates
        ringing = np.logical_and.accumulate(log_times <= high)
        early = ringing & (log_times <= low)
        counts[examples] += early.sum(axis=0, dtype=np.int32)
        numbers, columns = np.nonzero(ringing ^ early)
        if len(numbers):
            rings = Rings.of(log_residuals[numbers, columns], log_rates[columns], examples[columns])
            inside.append(rings)
        total += int(np.count_nonzero(ringing))
        num_rung += len(log_residuals)
        left = np.flatnonzero(ringing[-1])
        examples, log_rates, keys = examples[left], log_rates[left], keys[left]
        residuals = following[left]
    return counts, Rings.concatenate(inside)


def _rings_ahead(
    clocks: Clocks, residuals: Floats, num_rung: int, ahead: int
) -> tuple[Floats, Floats]:
    """Compute the next `ahead` rings of a few clocks that have rung `num_rung` times, residuals R.

    Returns:
        log R + alpha * k of their next rings [rings, clocks], and the R [clocks] after these.
    """
    ahead = min(ahead, max(_MOST_AHEAD // len(clocks), 4), clocks.frequency_limit - num_rung)
    decay = math.exp(-clocks.penalty)
    numbers = np.arange(num_rung, num_rung + ahead + 1, dtype=np.uint64)[:, np.newaxis]
    rows = exponentials(clocks.keys, numbers)
    rows[0] = residuals  # row 0 is R now; later rows are E_k until the recursion turns them into R
    if len(clocks) < 16:  # Python floats round as NumPy's do, and a loop over few of them is faster
        for column in range(len(clocks)):
            steps = accumulate(rows[:, column].tolist(), lambda r, e: r * decay + e)
            rows[:, column] = list(steps)
    else:
        for row in range(1, len(rows)):
            rows[row] += rows[row - 1] * decay
    log_residuals = np.log(rows[:-1])
    log_residuals += clocks.penalty * numbers[:-1]
    return log_residuals, rows[-1]
