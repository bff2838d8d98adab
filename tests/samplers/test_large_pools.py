"""Pools larger than the sample that brackets the last ring, and two implementations of the race."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.errors import InputError
from datacomp_flyt.samplers import checks, clocks, hard_cap_counts, no_cap_counts, soft_cap_counts
from datacomp_flyt.samplers.race import race_counts
from datacomp_flyt.samplers.rounds import round_counts
from tests.samplers.law import random_uids

EXAMPLES = 150_000
RNG = np.random.default_rng(3)
UIDS = random_uids(EXAMPLES, RNG)
SCORES = {
    "normal": RNG.normal(0, 2, EXAMPLES),
    "heavy tail": RNG.normal(0, 1, EXAMPLES) ** 5,
    "one holds nearly all": np.where(np.arange(EXAMPLES) == 77, 40.0, 0.0),
    "equal": np.zeros(EXAMPLES),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("penalty", "limit"), [(0.15, None), (0.0, 7), (2.0, None)])
@pytest.mark.parametrize("draws", [40, 60_000, 300_000])
def test_the_bracket_decides_speed_and_never_the_result(
    name: str, penalty: float, limit: int | None, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bracketed = race_counts(SCORES[name], UIDS, draws, penalty, limit, seed=1)
    monkeypatch.setattr(clocks, "_SAMPLE", EXAMPLES)  # the bracket is exact
    whole = race_counts(SCORES[name], UIDS, draws, penalty, limit, seed=1)
    assert bracketed.sum() == draws
    assert np.array_equal(bracketed, whole)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("draws", [40, 300_000])
def test_arrays_in_files_are_drawn_alike(tmp_path: Path, name: str, draws: int) -> None:
    """The sample of a file is a few contiguous ranges, so it differs from that in memory."""
    arrays = []
    for index, array in enumerate((SCORES[name], UIDS)):
        np.save(tmp_path / f"{index}.npy", array)
        arrays.append(np.load(tmp_path / f"{index}.npy", mmap_mode="r"))
    counts = soft_cap_counts(*arrays, draws, 0.15, seed=2, num_workers=2)
    assert isinstance(counts, np.memmap)
    assert np.array_equal(counts, soft_cap_counts(SCORES[name], UIDS, draws, 0.15, seed=2))


def test_the_limit_on_draws_is_for_one_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on counts is that of one example; all examples together may have more draws."""
    fair = no_cap_counts(SCORES["equal"], UIDS, 300_000, seed=1)
    monkeypatch.setattr(checks, "MOST_DRAWS", 1000)
    assert np.array_equal(no_cap_counts(SCORES["equal"], UIDS, 300_000, seed=1), fair)
    with pytest.raises(InputError, match="one example would be drawn more than 999 times"):
        no_cap_counts(SCORES["one holds nearly all"], UIDS, 300_000, seed=1)
    monkeypatch.setattr(checks, "MOST_DRAWS", 10)
    with pytest.raises(InputError, match=r"--num_samples is 101, wanted 1 to 100$"):
        no_cap_counts(SCORES["equal"][:1], UIDS[:1], 101, seed=1)


@pytest.mark.parametrize("missing", [0, 1, 1000])
def test_a_hard_cap_that_is_nearly_full_ends(missing: int) -> None:
    counts = hard_cap_counts(SCORES["normal"], UIDS, 3 * EXAMPLES - missing, 3, seed=0)
    assert counts.max() == 3
    assert counts.sum() == 3 * EXAMPLES - missing


@pytest.mark.parametrize("batch_size", [1, 900, 50_000, EXAMPLES])
def test_order_and_workers_change_nothing(batch_size: int) -> None:
    order = np.random.default_rng(5).permutation(EXAMPLES)
    scores = SCORES["normal"]
    counts = soft_cap_counts(scores, UIDS, 200_000, 0.15, 9, batch_size)
    again = soft_cap_counts(scores[order], UIDS[order], 200_000, 0.15, 9, batch_size, num_workers=2)
    assert counts.sum() == 200_000
    assert np.array_equal(counts[order], again)


def test_rounds_of_one_draw_are_the_race() -> None:
    """With G = 1, `round_counts` and `race_counts` use the same clocks and give equal counts."""
    part = slice(0, 3_000)
    race = race_counts(SCORES["normal"][part], UIDS[part], 9_000, 0.15, None, seed=4)
    rounds = round_counts(SCORES["normal"][part], UIDS[part], 9_000, 0.15, 1, seed=4)
    assert np.array_equal(race, rounds)


def test_no_cap_of_a_pool_whose_sample_misses_all_the_mass() -> None:
    counts = no_cap_counts(SCORES["one holds nearly all"], UIDS, 100_000, seed=2)
    assert counts[77] == 100_000  # all other examples together have probability 1e-12
