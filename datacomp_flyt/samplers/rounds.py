"""Algorithm 2 for any G: the race of clocks in rounds.

Inside a round of Algorithm 2 examples are drawn one after the other without repetition, and their
penalties are applied at the end of the round. As a race (see `race`): an example that rings waits
for the end of the round, which is the round's G-th ring, and only then starts its clock again, with
its log rate reduced by alpha. The other clocks run on, since exponential clocks have no memory. So
with T the end of the round,

    log T'_i = logaddexp(log T, log E_k + alpha * k - s_i)

is the next ring of an example i that has rung k times, and the next round is the G earliest of
all next rings. Each round's G earliest come from a calendar queue (Brown, CACM 1988): clocks lie
in buckets of log time, and only the buckets that are due are looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.files.memmap_arrays import Chunk, SpillFile, order_statistic, zeros_like_storage
from datacomp_flyt.progress import Progress
from datacomp_flyt.samplers.clocks import BLOCK, ClockPool, Clocks, Floats, exponentials
from datacomp_flyt.samplers.race import Rings, search_log_time
from datacomp_flyt.threads import blocks, map_threads

Timers = NDArray[np.void]
"""Clocks that wait for their next ring: its log time, and the state for the ring after it."""

_TIMER = np.dtype(
    [("time", "f8"), ("log_rate", "f8"), ("key", "u8"), ("example", "u4"), ("rings", "u4")]
)
_RAW = np.dtype(f"V{_TIMER.itemsize}")
_COUNT = np.dtype([("example", "u4"), ("rings", "u4")])
_RANGE_BITS = 24
_SLAB = 16 * BLOCK  # examples whose first timers are computed at once
_AT_ONCE = 8 * BLOCK  # timers that are collected before they are spilled
_MOST = float(np.finfo(np.float64).max)
# least rings in a bucket: reading a bucket touches every spilled run, which smaller buckets are not
# worth
_LEAST_IN_BUCKET = 1 << 12


def round_counts(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    num_samples: int,
    repetition_penalty: float,
    batch_size: int,
    seed: int,
    num_workers: int = 1,
) -> NDArray[np.int32]:
    """Count the draws of each example by Algorithm 2, G at a time; the last round is cut at N.

    Args:
        scores: finite scores [M], any offset and range.
        uids: `u8,u8` array [M].
        num_samples: N.
        repetition_penalty: alpha >= 0.
        batch_size: G, 1 <= G <= M.
        seed: selects the random numbers together with the uids.
        num_workers: threads; they do not change the result.

    Returns:
        int32 array [M] that sums to `num_samples`.
    """
    # times are relative to a typical score, since floats are most precise near zero
    origin = order_statistic(scores, len(scores) // 2)
    pool = ClockPool(scores, uids, repetition_penalty, num_samples, seed, origin)
    start, stop = _expected_times(pool, batch_size, num_samples)
    width = stop - start
    num_buckets = min(num_samples // max(batch_size // 2, _LEAST_IN_BUCKET) + 1, 1 << 14)
    spill_file, at_once = SpillFile(scores, _RAW), min(_AT_ONCE, len(pool) + num_samples)
    calendar = _Calendar(start, stop, num_buckets, spill_file, at_once)
    due = calendar.put_all(_first_timers(pool, -math.inf, stop, num_workers))
    drawn = 0
    bar = Progress("drawing", num_samples, "draw", leave=False)
    while drawn < num_samples:
        wanted = min(batch_size, num_samples - drawn)
        due = calendar.fill(due, wanted)
        # drawn examples wait, so N draws take longer than the estimate: extend the calendar
        while len(due) < wanted:
            width = min(2 * width + 1, _MOST / 2)
            earliest = [float(part["time"].min(initial=math.inf)) for part in calendar.waiting()]
            start = min([_next_first_time(pool, stop, num_workers), *earliest])
            before, stop = stop, min(start + width, _MOST)
            waking = _first_timers(pool, before, stop, num_workers)
            waking = itertools.chain(calendar.waiting(), waking)
            calendar = _Calendar(start, stop, num_buckets, spill_file, at_once)
            due = _concatenate([due, calendar.put_all(waking)])
            due = calendar.fill(due, wanted)
        ringing, due = _earliest(due, wanted, repetition_penalty, uids)
        drawn += wanted
        bar.update(wanted)
        _restart(ringing, repetition_penalty)
        due = _concatenate([due, calendar.put(ringing)])

    bar.close()
    counts = zeros_like_storage(scores, np.int32)
    _write_counts(counts, itertools.chain([due], calendar.waiting()))
    return counts


def _write_counts(counts: NDArray[np.int32], parts: Iterable[Timers]) -> None:
    """Write each clock's ring count to `counts`; range by range if that is memory-mapped."""
    spill_file = SpillFile(counts, _COUNT)
    ranges: dict[int, list[Chunk]] = {}
    for timers in parts:
        if spill_file.in_memory:
            counts[timers["example"]] = timers["rings"]
            continue
        rung = np.empty(len(timers), _COUNT)
        rung["example"], rung["rings"] = timers["example"], timers["rings"]
        rung = rung[np.argsort(rung["example"])]  # `sort` by a field is ten times slower
        range_of = rung["example"] >> np.uint32(_RANGE_BITS)
        ends = np.flatnonzero(np.diff(range_of.astype(np.int64), append=-1)) + 1
        for begin, end in itertools.pairwise([0, *ends.tolist()]):
            ranges.setdefault(int(range_of[begin]), []).append(spill_file.put(rung[begin:end]))
    for _, chunks in sorted(ranges.items()):
        for chunk in chunks:
            rung = spill_file.get(chunk)
            counts[rung["example"]] = rung["rings"]


def _expected_times(pool: ClockPool, batch_size: int, num_samples: int) -> tuple[float, float]:
    """Return log times before the end of the first round, and after that of the last one.

    Both are estimates by a sample of the clocks.
    """
    sample = pool.sample()
    share = len(sample) / len(pool)
    first_round = share * min(batch_size, num_samples)
    start, _ = search_log_time(sample, first_round / 4, first_round)
    _, stop = search_log_time(sample, share * num_samples, 1.05 * share * num_samples + 1)
    # times found separately may be out of order
    return min(max(start, -_MOST), stop), stop


def _restart(ringing: Timers, penalty: float) -> None:
    """Start the clocks of a round again at its end, in place: set their next rings."""
    ringing["rings"] += np.uint32(1)
    residuals = _log_residuals(ringing, penalty) - ringing["log_rate"]
    with np.errstate(over="ignore"):
        ringing["time"] = np.logaddexp(ringing["time"].max(), residuals)


def _first_timers(pool: ClockPool, low: float, high: float, num_workers: int) -> Iterator[Timers]:
    """Yield the timers of examples whose first ring is in (low, high], some at a time."""

    def find(block: slice) -> Timers:
        clocks = pool[block]
        times = _first_times(clocks)
        rows = np.flatnonzero((times > low) & (times <= high))
        timers = np.zeros(len(rows), _TIMER)
        timers["time"] = times[rows]
        timers["log_rate"] = clocks.log_rates[rows]
        timers["key"] = clocks.keys[rows]
        timers["example"] = rows + block.start
        return timers

    for slab in blocks(len(pool), _SLAB):
        yield from map_threads(find, blocks(slab.stop, BLOCK, slab.start), num_workers)


def _next_first_time(pool: ClockPool, low: float, num_workers: int) -> float:
    """Return the earliest first ring after log time `low`; infinity if there is none."""

    def find(block: slice) -> float:
        times = _first_times(pool[block])
        return float(times.min(initial=math.inf, where=times > low))

    return min(map_threads(find, blocks(len(pool), BLOCK), num_workers))


def _first_times(clocks: Clocks) -> Floats:
    """Return the log times of the first rings."""
    times = np.log(exponentials(clocks.keys, 0))
    times -= clocks.log_rates
    return times


def _concatenate(parts: list[Timers]) -> Timers:
    """Concatenate as raw bytes.

    NumPy would first compare the dtypes field by field for every pair of parts, which is slow.
    """
    return np.concatenate([part.view(_RAW) for part in parts]).view(_TIMER)


def _log_residuals(timers: Timers, penalty: float) -> Floats:
    """Return log E_k + alpha * k of each timer's next ring."""
    rings = timers["rings"].astype(np.uint64)
    log_residuals = np.log(exponentials(timers["key"].copy(), rings))
    log_residuals += penalty * rings
    return log_residuals


def _earliest(
    timers: Timers, num_timers: int, penalty: float, uids: NDArray[np.void]
) -> tuple[Timers, Timers]:
    """Return the `num_timers` earliest timers, and the others.

    Two times can be equal because the added wait is smaller than the rounding of log T. Then the
    wait itself decides, in double the precision of a float, and if that is equal too, the smaller
    uid.
    """
    times = timers["time"].copy()
    order = np.argpartition(times, num_timers - 1)
    last = times[order[num_timers - 1]]
    if len(timers) > num_timers and times[order[num_timers:]].min() == last:
        tied = np.flatnonzero(times == last)
        names = uids[timers["example"][tied]]
        since = Rings.of(
            _log_residuals(timers[tied], penalty), timers["log_rate"][tied], timers["example"][tied]
        )
        tied = tied[np.lexsort((names["f1"], names["f0"], since.remainders, since.log_times))]
        order = np.concatenate([np.flatnonzero(times < last), tied, np.flatnonzero(times > last)])
    return timers.take(order[:num_timers]), timers.take(order[num_timers:])


class _Calendar:
    """Timers in buckets of equal width in log time from `start` to `stop`, and those beyond.

    They are collected in a buffer. When it is full, it is spilled as a run, in the order of the
    buckets, so that a bucket is a slice of each run.
    """

    def __init__(
        self, start: float, stop: float, num_buckets: int, spill_file: SpillFile, at_once: int
    ) -> None:
        self._start, self._stop, self._num_buckets = start, stop, num_buckets
        self._spill_file = spill_file
        self._runs: list[tuple[Chunk, NDArray[np.integer]]] = []  # and where each bucket starts
        self._buffer, self._numbers = np.empty(at_once, _RAW), np.empty(at_once, np.int16)
        self._length = 0  # of the buffer
        self._next = 0

    def put_all(self, parts: Iterable[Timers]) -> Timers:
        """Put several parts; see `put`."""
        return _concatenate([np.empty(0, _RAW), *map(self.put, parts)])

    def put(self, timers: Timers) -> Timers:
        """Put timers into their buckets; return those whose bucket was taken out already."""
        times = timers["time"].copy()
        # halve first: stop - start may overflow
        scale = self._num_buckets / (self._stop / 2 - self._start / 2 or 1.0)
        slots = (times / 2 - self._start / 2) * scale
        np.clip(slots, self._next - 1, self._num_buckets - 1, out=slots)
        slots[times > self._stop] = self._num_buckets
        numbers = slots.astype(np.int16)
        late, raw = numbers < self._next, timers.view(_RAW)
        stay = np.flatnonzero(~late)
        for part in blocks(len(stay), len(self._buffer)):
            rows = stay[part]
            if self._length + len(rows) > len(self._buffer):
                self._spill()
            end = self._length + len(rows)
            # by default NumPy would take a copy first, so as to raise before it writes
            raw.take(rows, out=self._buffer[self._length : end], mode="clip")
            numbers.take(rows, out=self._numbers[self._length : end], mode="clip")
            self._length = end
        return raw.take(np.flatnonzero(late)).view(_TIMER)

    def fill(self, due: Timers, wanted: int) -> Timers:
        """Add timers of the next buckets to `due` until there are `wanted` or no bucket is left."""
        taken, length = [due.view(_RAW)], len(due)
        while length < wanted and self._next < self._num_buckets:
            here = np.flatnonzero(self._numbers[: self._length] == self._next)
            bucket = [self._buffer.take(here)]
            for run, starts in self._runs:
                begin, end = starts[self._next : self._next + 2].tolist()
                if begin < end:
                    bucket.append(self._spill_file.get(run, begin, end))
            taken += bucket
            length += sum(map(len, bucket))
            self._next += 1
        return np.concatenate(taken).view(_TIMER)

    def waiting(self) -> Iterator[Timers]:
        """Yield all timers inside, run by run."""
        here = np.flatnonzero(self._numbers[: self._length] >= self._next)
        yield self._buffer.take(here).view(_TIMER)
        for run, starts in self._runs:
            yield self._spill_file.get(run, int(starts[self._next])).view(_TIMER)

    def _spill(self) -> None:
        """Spill the buffer as a run. If runs are in memory, free the used part of older runs."""
        for index, (run, starts) in enumerate(self._runs):
            gone = starts[self._next]
            if 4 * gone > run.length:
                self._runs[index] = self._spill_file.rest(run, int(gone)), starts - gone
        order = np.argsort(self._numbers[: self._length], kind="stable")
        # those that were taken out of the buffer come first
        order = order[np.count_nonzero(self._numbers[: self._length] < self._next) :]
        buckets = np.arange(self._num_buckets + 2, dtype=np.int16)
        starts = np.searchsorted(self._numbers.take(order), buckets)
        run = self._spill_file.put(self._buffer.take(order))
        self._runs.append((run, starts.astype(np.int32)))
        self._length = 0
