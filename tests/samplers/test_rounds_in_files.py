"""Sampling a pool in files by rounds needs memory for a round and a buffer, not for the pool."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.files import memmap_arrays as file_arrays
from datacomp_flyt.files.memmap_arrays import SpillFile
from datacomp_flyt.samplers import clocks, rounds
from datacomp_flyt.samplers.rounds import round_counts
from tests.samplers.law import random_uids

InFiles = Callable[..., list[np.ndarray]]
EXAMPLES, DRAWS = 80_000, 100_000
RNG = np.random.default_rng(8)
UIDS = random_uids(EXAMPLES, RNG)
SCORES = RNG.normal(0, 1, EXAMPLES).astype(np.float32)
TIMER = 32  # bytes


@pytest.fixture
def in_files(tmp_path: Path) -> InFiles:
    def write(*arrays: np.ndarray) -> list[np.ndarray]:
        for index, array in enumerate(arrays):
            np.save(tmp_path / f"{index}.npy", array)
        return [np.load(tmp_path / f"{index}.npy", mmap_mode="r") for index in range(len(arrays))]

    return write


def use_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make buffers and blocks small compared with the pool of the tests."""
    monkeypatch.setattr(rounds, "_AT_ONCE", 1 << 12)
    monkeypatch.setattr(rounds, "_SLAB", 1 << 12)
    monkeypatch.setattr(rounds, "_LEAST_IN_BUCKET", 1 << 8)
    monkeypatch.setattr(rounds, "BLOCK", 1 << 10)
    monkeypatch.setattr(clocks, "_SAMPLE", 1 << 10)
    monkeypatch.setattr(file_arrays, "_BLOCK", 1 << 10)


def peak_of(function: Callable[[], np.ndarray]) -> tuple[np.ndarray, int]:
    """Return the function's result, and its peak memory in bytes."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("spread", "batch_size", "least_calendars"),
    [
        (1, 5_000, 1),
        (1, 500, 1),  # the rings of a round are far apart
        (6, 5_000, 2),  # slow examples extend a round beyond the calendar
    ],
)
def test_memory_does_not_grow_with_the_pool(
    in_files: InFiles,
    monkeypatch: pytest.MonkeyPatch,
    spread: float,
    batch_size: int,
    least_calendars: int,
) -> None:
    scores = SCORES * np.float32(spread)
    expected = round_counts(scores, UIDS, DRAWS, 0.15, batch_size, seed=1)
    use_small_blocks(monkeypatch)
    calendars = []
    init = rounds._Calendar.__init__
    monkeypatch.setattr(
        rounds._Calendar, "__init__", lambda *args: calendars.append(1) or init(*args)
    )
    pool = in_files(scores, UIDS)
    counts, peak = peak_of(lambda: round_counts(*pool, DRAWS, 0.15, batch_size, seed=1))
    assert isinstance(counts, np.memmap)
    assert np.array_equal(counts, expected)
    assert len(calendars) >= least_calendars
    assert peak < TIMER * (10 * batch_size + 50_000)


def test_memory_does_not_grow_with_the_draws() -> None:
    """The memory of timers that have rung is reused."""
    buckets, each = 300, 200

    def ring() -> np.ndarray:
        spill_file = SpillFile(np.zeros(1), rounds._RAW)
        calendar = rounds._Calendar(0.0, buckets, buckets, spill_file, 1000)
        lengths, timers = [], np.zeros(each, rounds._TIMER)
        for bucket in range(buckets):
            timers["time"] = np.linspace(bucket, bucket + 10, each, endpoint=False)
            due = calendar.put(timers)
            lengths.append(len(calendar.fill(due, each // 10)))
        return np.array([*lengths, *map(len, calendar.waiting())])

    lengths, peak = peak_of(ring)
    assert lengths.sum() == buckets * each
    assert lengths[20 : buckets - 1].tolist() == [each] * (buckets - 21)
    assert peak < TIMER * buckets * each / 5
