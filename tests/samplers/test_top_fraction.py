"""Top fraction: int(f M) examples with ties broken by uid, or DataComp's rule that keeps ties."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacomp_flyt.errors import InputError
from datacomp_flyt.files import memmap_arrays as file_arrays
from datacomp_flyt.pool import subset
from datacomp_flyt.samplers import checks, top_fraction, top_fraction_counts
from tests.oracles import selection
from tests.oracles.selection import UID_DTYPE, UidPair, uid_array

FRACTIONS = (0.1, 0.2, 0.29, 0.3, 0.5, 0.57, 0.999, 1.0)


def small_uids(num_examples: int, rng: np.random.Generator) -> list[UidPair]:
    """Return distinct uids in random order; many share a half, and some have the top bit set."""
    halves = [0, 1, 2, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
    pairs = [(high, low) for high in halves for low in halves]
    assert num_examples <= len(pairs)
    return [pairs[i] for i in rng.permutation(len(pairs))[:num_examples]]


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("levels", [1, 2, 5, 1_000])
def test_exactly_n_with_ties_broken_by_uid(fraction: float, levels: int) -> None:
    rng = np.random.default_rng(levels)
    uids = small_uids(100, rng)
    scores = rng.integers(0, levels, size=100) / 4.0
    counts = top_fraction_counts(scores, uid_array(uids), fraction)
    assert np.issubdtype(counts.dtype, np.integer)
    assert counts.tolist() == selection.top_fraction(scores.tolist(), uids, fraction)
    assert counts.sum() == int(fraction * 100)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("levels", [1, 2, 5, 1_000])
def test_keep_ties_is_the_rule_of_datacomp(fraction: float, levels: int) -> None:
    rng = np.random.default_rng(levels)
    uids = small_uids(100, rng)
    scores = rng.integers(0, levels, size=100) / 4.0
    counts = top_fraction_counts(scores, uid_array(uids), fraction, keep_ties=True)
    assert np.issubdtype(counts.dtype, np.integer)
    assert counts.tolist() == selection.top_fraction_keep_ties(scores.tolist(), fraction)


@pytest.mark.parametrize("block", [1, 3, 7])
@pytest.mark.parametrize("in_order", [False, True])
def test_ties_are_found_block_by_block(
    block: int, in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_fraction, "_BLOCK", block)
    monkeypatch.setattr(subset, "_BLOCK", block)
    rng = np.random.default_rng(block)
    uids = small_uids(40, rng)
    uids = sorted(uids) if in_order else uids
    scores = rng.integers(0, 3, size=40) / 4.0
    for num_kept in range(1, 41):
        counts = top_fraction_counts(scores, uid_array(uids), num_kept / 40)
        assert counts.tolist() == selection.top_fraction(scores.tolist(), uids, num_kept / 40)


@pytest.mark.parametrize("last", range(7))
def test_uids_of_which_the_last_is_out_of_order(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "_BLOCK", 3)
    uids = [(0, 1), (0, 3), (2, 1), (2, 3), (4, 1), (4, 3), (4, 5)]
    uids.append((uids[last][0], uids[last][1] - 1))
    counts = top_fraction_counts(np.zeros(8), uid_array(uids), (last + 1) / 8)
    assert counts.tolist() == [int(row < last or row == 7) for row in range(8)]


@pytest.mark.parametrize("keep_ties", [False, True])
def test_ties_of_a_pool_in_files_are_not_in_memory(
    tmp_path: Path, keep_ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (top_fraction, file_arrays, checks, subset):
        monkeypatch.setattr(module, "_BLOCK", 1 << 11)
    monkeypatch.setattr(file_arrays, "_HISTOGRAM_BITS", 8)
    arrays = [np.repeat(np.float32([0, 1]), 50_000), np.zeros(100_000, UID_DTYPE)]
    arrays[1]["f0"] = np.arange(100_000) // 7
    arrays[1]["f1"] = np.arange(100_000)
    for index, array in enumerate(arrays):
        np.save(tmp_path / f"{index}.npy", array)
        arrays[index] = np.load(tmp_path / f"{index}.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        counts = top_fraction_counts(arrays[0], arrays[1], 0.8, keep_ties)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    left_out = [] if keep_ties else list(range(30_000, 50_000))
    assert np.flatnonzero(counts == 0).tolist() == left_out
    assert peak < 8 * 30_000


def test_all_equal_scores_are_decided_by_uid_alone() -> None:
    """The smaller uid comes first: the high half decides before the low half, both unsigned."""
    pairs = [(2**63, 0), (0, 2**63), (2**63, 1), (0, 1), (2**64 - 1, 0), (1, 0)]
    counts = top_fraction_counts(np.full(6, 0.25), uid_array(pairs), 0.5)
    assert counts.tolist() == [0, 1, 0, 1, 0, 1]
    everything = top_fraction_counts(np.full(6, 0.25), uid_array(pairs), 0.5, keep_ties=True)
    assert everything.tolist() == [1] * 6


def test_zero_and_minus_zero_are_one_score() -> None:
    pairs = [(4, 0), (3, 0), (2, 0), (1, 0)]
    scores = np.array([0.0, -0.0, 0.0, -0.0])
    assert top_fraction_counts(scores, uid_array(pairs), 0.5).tolist() == [0, 0, 1, 1]
    assert top_fraction_counts(scores, uid_array(pairs), 0.5, keep_ties=True).tolist() == [1] * 4


def test_negative_scores_and_the_largest_doubles_are_ordered_as_numbers() -> None:
    scores = np.array([-1.0, -2.0, -1.7e308, 1.7e308, 5e-324, -5e-324])
    uids = uid_array((0, i) for i in range(6))
    order = [3, 4, 5, 0, 1, 2]
    for n in range(1, 7):
        counts = top_fraction_counts(scores, uids, n / 6 + 1e-9 if n < 6 else 1.0)
        assert np.flatnonzero(counts).tolist() == sorted(order[:n])


def test_float32_scores_are_compared_as_they_are() -> None:
    """The float32 numbers 0.1 and the next one are different scores."""
    low = np.float32(0.1)
    high = np.nextafter(low, np.float32(1.0))
    scores = np.array([low, high, low, high], dtype=np.float32)
    uids = uid_array((0, i) for i in range(4))
    assert top_fraction_counts(scores, uids, 0.5).tolist() == [0, 1, 0, 1]
    assert top_fraction_counts(scores, uids, 0.25, keep_ties=True).tolist() == [0, 1, 0, 1]


def test_neighbouring_float64_scores_are_different() -> None:
    scores = np.array([1.0, np.nextafter(1.0, 2.0), 1.0])
    uids = uid_array((0, i) for i in range(3))
    assert top_fraction_counts(scores, uids, 0.34).tolist() == [0, 1, 0]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_small_pool_in_any_order(data: st.DataObject) -> None:
    pairs = data.draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(2**64 - 3, 2**64 - 1)),
            min_size=1,
            max_size=12,
            unique=True,
        )
    )
    values = data.draw(
        st.lists(st.integers(-2, 2), min_size=len(pairs), max_size=len(pairs)), label="scores"
    )
    keep = data.draw(st.integers(1, len(pairs)), label="n")
    fraction = 1.0 if keep == len(pairs) else (keep + 0.5) / len(pairs)
    scores = np.array(values, dtype=np.float64)
    uids = uid_array(pairs)
    exactly = top_fraction_counts(scores, uids, fraction)
    ties = top_fraction_counts(scores, uids, fraction, keep_ties=True)
    assert exactly.tolist() == selection.top_fraction(scores.tolist(), pairs, fraction)
    assert ties.tolist() == selection.top_fraction_keep_ties(scores.tolist(), fraction)
    order = np.array(data.draw(st.permutations(range(len(pairs)))))
    again = top_fraction_counts(scores[order], uids[order], fraction)
    assert again.tolist() == exactly[order].tolist()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0000001, 2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("keep_ties", [False, True])
def test_a_fraction_outside_zero_to_one_is_refused(fraction: float, keep_ties: bool) -> None:
    uids = uid_array((0, i) for i in range(4))
    with pytest.raises(InputError):
        top_fraction_counts(np.arange(4.0), uids, fraction, keep_ties=keep_ties)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("keep_ties", [False, True])
def test_scores_that_are_not_finite_are_refused(bad: float, keep_ties: bool) -> None:
    uids = uid_array((0, i) for i in range(4))
    with pytest.raises(InputError):
        top_fraction_counts(np.array([1.0, bad, 3.0, 4.0]), uids, 0.5, keep_ties=keep_ties)


def test_scores_and_uids_of_different_length_are_refused() -> None:
    with pytest.raises(InputError):
        top_fraction_counts(np.arange(4.0), uid_array((0, i) for i in range(3)), 0.5)
