"""Selections of a report: their facts, their names and their overlap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.report.sample import read_sample
from datacomp_flyt.report.selections import (
    Selection,
    check_in_pool,
    name_subsets,
    overlap,
    read_selections,
)
from tests.conftest import hex_uids, make_pool, refusal, sorted_uids, write_files

POOL = make_pool(60)
UIDS = sorted_uids(POOL.uids)
RNG = np.random.default_rng(2)


def read(*subsets: str) -> list[Selection]:
    return read_selections(name_subsets(subsets), 2)


def write(path: Path, counts: np.ndarray, uids: np.ndarray = UIDS) -> str:
    write_subset(path, uids, counts)
    return str(path)


def test_overlap_is_what_two_multisets_share(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{number}.npy", RNG.integers(0, 4, 60, np.int32)) for number in range(3)
    ]
    selections = read(*paths)
    draws, distinct = overlap(selections)
    bags = [Counter(np.load(path).tolist()) for path in paths]
    for row, one in enumerate(bags):
        for column, other in enumerate(bags):
            assert draws[row, column] == pytest.approx((one & other).total() / one.total())
            assert distinct[row, column] == pytest.approx(len(set(one) & set(other)) / len(one))


def test_facts_of_a_selection(tmp_path: Path) -> None:
    counts = np.array([3, 0, 1] * 20, np.int32)
    (selection,) = read(write(tmp_path / "s.npy", counts))
    assert (selection.draws, selection.distinct, selection.most) == (80, 40, 3)
    assert selection.effective == pytest.approx(80**2 / (20 * 9 + 20))
    order = RNG.permutation(60)
    np.testing.assert_array_equal(selection.counts_of(UIDS[order]), counts[order])
    assert selection.counts_of(sorted_uids(hex_uids(5, "others"))).tolist() == [0] * 5


def test_names_come_from_the_flag_or_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "s.npy", np.ones(60, np.int32))
    equals = write(tmp_path / "a=b.npy", np.ones(60, np.int32))
    selections = read(path, f"M-FLYT + SCS={path}", equals, f"c={equals}")
    assert [selection.name for selection in selections] == ["s", "M-FLYT + SCS", "a=b", "c"]
    assert selections[3].path == equals
    assert name_subsets({"any name": tmp_path / "s.npy"}) == {"any name": path}


def test_what_is_wrong_with_the_given_subsets(tmp_path: Path) -> None:
    path = write(tmp_path / "s.npy", np.ones(60, np.int32))
    assert "has the name 's' of another" in refusal(name_subsets, [path, path])
    assert "give each a name of its own" in refusal(name_subsets, [f"={path}"])
    assert "at most 7" in refusal(name_subsets, [f"{n}={path}" for n in range(8)])
    assert "cannot be read as .npy" in refusal(read, str(tmp_path / "no.npy"))
    np.save(tmp_path / "other.npy", np.arange(4))
    assert "is no subset" in refusal(read, str(tmp_path / "other.npy"))


@pytest.mark.parametrize("max_rows", [30, 60])
def test_a_selection_of_another_pool_is_refused(tmp_path: Path, max_rows: int) -> None:
    shards = open_shards(write_files(tmp_path / "m", POOL.metadata, 2), "--metadata_dir", 1)
    sample = read_sample(shards, max_rows, 0, 1)
    others = sorted_uids([*POOL.uids, *hex_uids(20, "others")])
    good = write(tmp_path / "good.npy", np.ones(60, np.int32))
    bad = write(tmp_path / "bad.npy", np.ones(80, np.int32), others)
    check_in_pool(read(good)[0], sample)
    said = refusal(check_in_pool, read(bad)[0], sample)
    assert "uids that are not in the pool" in said
    assert "bad.npy" in said
