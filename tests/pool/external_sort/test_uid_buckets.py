"""Buckets are consecutive ranges of uids, and runs hold every row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacomp_flyt.pool.external_sort.uid_buckets import (
    Rows,
    bucket_numbers,
    read_bucket,
    write_run,
)

RNG = np.random.default_rng(0)
ENDS = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def rows_of(high: np.ndarray, start: int = 0) -> Rows:
    """Make rows whose columns identify them."""
    numbers = np.arange(start, start + len(high))
    columns = {"a": numbers.astype(np.float32), "b": numbers / 7}
    return Rows(high, numbers[::-1].astype(np.uint64), columns)


def listed(rows: Rows) -> list[tuple[float, ...]]:
    columns = (rows.columns["a"].tolist(), rows.columns["b"].tolist())
    return list(zip(rows.high.tolist(), rows.low.tolist(), *columns, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1) | st.sampled_from(ENDS), min_size=1),
    st.sampled_from([1, 2, 3, 1000, 1 << 16]),
)
def test_buckets_are_in_the_order_of_uids(numbers: list[int], num_buckets: int) -> None:
    found = bucket_numbers(np.array(sorted(numbers), np.uint64), num_buckets)
    assert found.tolist() == [(n >> 32) * num_buckets >> 32 for n in sorted(numbers)]
    assert (np.diff(found.astype(np.int64)) >= 0).all()
    assert found[-1] < num_buckets


def test_buckets_are_of_one_size() -> None:
    high = RNG.integers(0, 2**64, 100_000, np.uint64)
    counts = np.bincount(bucket_numbers(high, 50), minlength=50)
    assert counts.sum() == 100_000
    assert counts.min() > 1_700
    assert counts.max() < 2_300


@pytest.mark.parametrize("num_buckets", [1, 7, 300])
@pytest.mark.parametrize("sizes", [(200,), (90, 1, 40, 3)])
def test_bucket_numbers_all_runs_are_all_rows(
    tmp_path: Path, num_buckets: int, sizes: tuple[int, ...]
) -> None:
    runs, rows = [], []
    for number, size in enumerate(sizes):
        rows.append(rows_of(RNG.integers(0, 2**64, size, np.uint64), 1000 * number))
        runs.append(tmp_path / f"{number}.run")
        counts = write_run(runs[-1], rows[-1], num_buckets)
        buckets = bucket_numbers(rows[-1].high, num_buckets)
        assert counts.tolist() == [int((buckets == n).sum()) for n in range(num_buckets)]
    found = [read_bucket(runs, number) for number in range(num_buckets)]
    assert all(part.columns["a"].dtype == np.float32 for part in found)
    assert all(part.columns["b"].dtype == np.float64 for part in found)
    for number, part in enumerate(found):
        assert (bucket_numbers(part.high, num_buckets) == number).all()
    everything = listed(Rows.concatenate(rows))
    assert sorted(listed(Rows.concatenate(found))) == sorted(everything)
    assert {path.name for path in tmp_path.iterdir()} == {run.name for run in runs}


@pytest.mark.parametrize("high", [0, 2**63, 2**64 - 1])
def test_slices_without_a_row(tmp_path: Path, high: int) -> None:
    run = tmp_path / "run.run"
    write_run(run, rows_of(np.full(3, high, np.uint64)), 5)
    lengths = [len(read_bucket([run], number)) for number in range(5)]
    assert sorted(lengths) == [0, 0, 0, 0, 3]
    assert lengths[[0, 2**63, 2**64 - 1].index(high) * 2] == 3


def test_rows_of_one_slice_keep_their_order(tmp_path: Path) -> None:
    rows = rows_of(np.zeros(50, np.uint64))
    write_run(tmp_path / "run", rows, 3)
    found = read_bucket([tmp_path / "run"], 0)
    assert listed(found) == listed(rows)
    assert found.uids.tolist() == [(0, 49 - n) for n in range(50)]
