"""Subsets of rounds against a slow version in plain Python, and their properties."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacomp_flyt.errors import InputError
from datacomp_flyt.exits import running
from datacomp_flyt.pool.subset import read_subset, write_subset
from datacomp_flyt.self_filtering import next_subset as command
from datacomp_flyt.self_filtering.next_subset import in_first_half, spread, subset_counts
from tests.conftest import hex_uids, write_files
from tests.oracles import self_filtering as oracle
from tests.oracles.selection import parse_uid, uid_array

PAIRS = [parse_uid(uid) for uid in hex_uids(90)]
UIDS = uid_array(PAIRS)


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("nan")]), min_size=9, max_size=60),
    draws=st.integers(1, 400),
    fraction=st.floats(0.12, 0.5),
    share=st.floats(0, 1),
    round_index=st.integers(0, 6),
    seed=st.integers(-3, 2**63),
)
def test_equals_the_slow_version(
    scores: list[float], draws: int, fraction: float, share: float, round_index: int, seed: int
) -> None:
    if sum(not math.isnan(score) for score in scores) < int(fraction * len(scores)):
        return
    uids = PAIRS[: len(scores)]
    made = subset_counts(
        np.array(scores), uid_array(uids), draws, fraction, share, round_index, seed
    )
    assert made.total.tolist() == oracle.subset_counts(
        scores, uids, draws, fraction, share, round_index, seed
    )
    assert made.total.sum() == draws


def test_shares_of_the_two_parts() -> None:
    scores = np.linspace(0, 1, 90)
    made = subset_counts(scores, UIDS, 1000, 0.3, 0.2, 1, 0)
    assert (made.confident.sum(), made.random.sum()) == (800, 200)
    assert np.flatnonzero(made.confident).tolist() == list(range(63, 90))
    assert set(made.confident[63:]) == {29, 30}
    assert set(made.random) == {2, 3}
    assert not subset_counts(scores, UIDS, 1000, 0.3, 1.0, 1, 0).confident.any()
    assert not subset_counts(scores, UIDS, 1000, 0.3, 0.0, 1, 0).random.any()


def test_order_of_the_pool_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores, order = rng.normal(size=90).round(1), rng.permutation(90)
    one = subset_counts(scores, UIDS, 333, 0.4, 0.35, 2, 7).total
    other = subset_counts(scores[order], UIDS[order], 333, 0.4, 0.35, 2, 7).total
    assert one[order].tolist() == other.tolist()


def test_rounds_seeds_and_parts_have_random_bits_of_their_own() -> None:
    kinds = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    chosen = {tuple(spread(45, UIDS, index, seed, part)) for index, seed, part in kinds}
    assert len(chosen) == len(kinds)


def test_each_pair_is_as_likely_as_the_others() -> None:
    rounds = 2000
    drawn = sum(spread(30, UIDS, index, 5).astype(int) for index in range(rounds))
    error = (drawn - rounds / 3) / np.sqrt(rounds * 2 / 9)
    assert np.abs(error).max() < 4.5
    assert 0.7 < error.std() < 1.3


def test_halves_equal_the_oracle() -> None:
    first = in_first_half(UIDS, 3)
    assert first.tolist() == [oracle.first_half(uid, 3) for uid in PAIRS]
    assert 25 < first.sum() < 65
    assert in_first_half(UIDS, 4).tolist() != first.tolist()


def test_too_few_scores_for_the_fraction() -> None:
    scores = np.full(90, np.nan)
    scores[:10] = 1
    with pytest.raises(InputError, match="fraction"):
        subset_counts(scores, UIDS, 100, 0.3, 0.2, 1, 0)


# ------------------------------------------------------------------------------ as a command


def run(*words: object) -> None:
    with mock.patch.object(sys, "argv", ["next_subset", *map(str, words)]), running("next_subset"):
        command.main()


def write(folder: Path, parts: int, seed: int | None) -> tuple[str, str]:
    """Write metadata and a score table in `parts` files each, shuffled by `seed` if it is given."""
    uids, scores = hex_uids(90), np.random.default_rng(1).normal(size=90)
    columns = {"uid": uids, "self_filtering": scores.astype(np.float32)}
    metadata = write_files(folder / "metadata", {"uid": uids}, parts, seed)
    return metadata, write_files(folder / "scores", columns, parts, None if seed is None else 9)


def test_the_split_into_files_does_not_matter(tmp_path: Path) -> None:
    contents = []
    for name, parts, seed in (("one", 1, None), ("four", 4, 2), ("seven", 7, 3)):
        metadata, scores = write(tmp_path / name, parts, seed)
        out = tmp_path / name / "round_1"
        run("--metadata_dir", metadata, "--scores_dir", scores, "--draws", 200, "--round", 1,
            "--halves", "--out", out)  # fmt: skip
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert set(contents[0]) == {"subset.npy", "confident.npy", "subset_a.npy", "subset_b.npy"}


def test_halves_partition_the_subset(tmp_path: Path) -> None:
    metadata, scores = write(tmp_path, 2, 1)
    run("--metadata_dir", metadata, "--scores_dir", scores, "--draws", 200, "--round", 1,
        "--halves", "--out", tmp_path)  # fmt: skip
    whole, a, b = (
        np.load(tmp_path / name) for name in ("subset.npy", "subset_a.npy", "subset_b.npy")
    )
    assert np.sort(np.concatenate([a, b])).tolist() == whole.tolist()
    assert in_first_half(a, 0).all()
    assert not in_first_half(b, 0).any()


def test_a_selection_instead_of_scores(tmp_path: Path) -> None:
    metadata, _ = write(tmp_path, 2, 1)
    chosen = np.zeros(90, int)
    chosen[::9] = 7
    order = np.argsort(UIDS)
    write_subset(tmp_path / "selected.npy", UIDS[order], chosen[order])
    flags = ("--metadata_dir", metadata, "--selected", tmp_path / "selected.npy", "--round", 1)
    run(*flags, "--draws", 100, "--out", tmp_path / "out")
    uids, counts = read_subset(tmp_path / "out" / "subset.npy")
    assert counts.sum() == 100
    assert (counts[np.isin(uids, UIDS[::9])] >= 7).all()
    assert (counts[~np.isin(uids, UIDS[::9])] == 1).all()
    with pytest.raises(SystemExit, match="2"):
        # fewer draws than the 70 of the selection
        run(*flags, "--draws", 60, "--out", tmp_path / "less")
    assert not (tmp_path / "less" / "subset.npy").exists()
