"""Scores of a round: cross-fitting by hand, and the tables that are written."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.exits import running
from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.self_filtering import scores as module
from datacomp_flyt.self_filtering.scores import SEEN, UNSEEN, cross_fitted
from tests.conftest import hex_uids, write_files
from tests.oracles import self_filtering as oracle
from tests.oracles.selection import parse_uid, uid_array

ROWS = 60


@pytest.mark.parametrize("memorisation", [False, True])
def test_by_hand(memorisation: bool) -> None:
    """Three pairs: `a` was trained on the first, `b` on the second, neither on the third."""
    a, b = np.array([1.0, 0.0, -1.0]), np.array([30.0, 20.0, 10.0])  # b gives more to all
    unit = np.sqrt(1.5)  # both become (unit, 0, -unit)
    made = cross_fitted(
        a, b, np.array([True, False, False]), np.array([True, True, False]), memorisation
    )
    np.testing.assert_allclose(made.unseen, [unit, 0, -unit], atol=1e-12)
    np.testing.assert_allclose(made.seen, [unit, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(made.score, [unit, 0, -unit], atol=1e-12)  # nothing was gained


def test_training_on_a_pair_adds_nothing_to_its_score() -> None:
    """Every pair gains 5 by being trained on; the order of the scores is that without it."""
    rng = np.random.default_rng(0)
    clean, first = rng.normal(size=400), rng.random(400) < 0.5
    a, b = clean + 5 * first, clean + 5 * ~first
    made = cross_fitted(a, b, first, np.ones(400, bool))
    assert np.corrcoef(made.score[first], clean[first])[0, 1] > 0.999
    assert abs(made.score[first].mean() - made.score[~first].mean()) < 0.2
    assert (made.seen > made.unseen).all()
    plain = np.corrcoef(a, clean)[0, 1]
    assert plain < 0.5 < np.corrcoef(made.score, clean)[0, 1]


@pytest.mark.parametrize("memorisation", [False, True])
def test_like_the_slow_one(memorisation: bool) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.2, 0.1, 50), rng.normal(0.4, 0.3, 50)
    halves = rng.choice(["a", "b", ""], 50)
    made = cross_fitted(a, b, halves == "a", halves != "", memorisation)
    wanted = oracle.cross_fitted(a.tolist(), b.tolist(), halves.tolist(), memorisation)
    np.testing.assert_allclose(made.score, wanted, rtol=1e-12)


def test_memorisation_lowers_what_gained_most() -> None:
    a = np.array([0.0, 0.0, 3.0, 0.0, 1.0])
    b = np.array([0.0, 0.0, 0.0, 3.0, 1.0])
    in_first = np.array([True, False, True, False, True])
    made = cross_fitted(a, b, in_first, np.array([True, True, True, True, False]), True)
    assert made.score[2] < made.score[0]  # the pairs that only their own model likes
    assert made.score[3] < made.score[1]
    plain = cross_fitted(a, b, in_first, np.array([True, True, True, True, False]))
    assert made.score[4] == plain.score[4]


def run(*words: object) -> None:
    with mock.patch.object(sys, "argv", ["scores", *map(str, words)]), running("scores"):
        module.main()


def test_tables(tmp_path: Path) -> None:
    uids, rng = hex_uids(ROWS), np.random.default_rng(3)
    columns = {f"clip_{m}_similarity_score": rng.normal(size=ROWS).astype(np.float32) for m in "ab"}
    columns["clip_model_similarity_score"] = rng.normal(size=ROWS).astype(np.float32)
    metadata = write_files(tmp_path / "metadata", {"uid": uids, **columns}, 3, 1)
    run("--score", "alignment", "--metadata_dir", metadata, "--out", tmp_path / "plain")
    table = pq.read_table(tmp_path / "plain" / "self_filtering").to_pydict()
    own = dict(zip(uids, columns["clip_model_similarity_score"], strict=True))
    assert table["uid"] == sorted(uids)
    assert table["self_filtering"] == [own[uid] for uid in table["uid"]]

    unembedded = hex_uids(ROWS + 1)[-1:]  # in the tars, but its picture is damaged
    assert unembedded[0] not in uids
    for part, chosen in enumerate((uids[:30] + unembedded, uids[20:40])):
        pairs = uid_array(sorted(map(parse_uid, chosen)))
        write_subset(tmp_path / f"subset_{part}.npy", pairs)
    run("--score", "cross_fitted", "--metadata_dir", metadata, "--out", tmp_path / "two",
        "--subsets", tmp_path / "subset_0.npy", tmp_path / "subset_1.npy")  # fmt: skip
    table = pq.read_table(tmp_path / "two" / "self_filtering").to_pydict()
    halves = [
        "" if uid not in uids[:40] else "a" if oracle.first_half(parse_uid(uid), 0) else "b"
        for uid in uids
    ]
    wanted = oracle.cross_fitted(
        columns["clip_a_similarity_score"].tolist(),
        columns["clip_b_similarity_score"].tolist(), halves, False,
    )  # fmt: skip
    by_uid = dict(zip(uids, wanted, strict=True))
    np.testing.assert_allclose(
        table["self_filtering"], [by_uid[uid] for uid in table["uid"]], rtol=1e-5
    )
    assert table[UNSEEN] == table["self_filtering"]
    outside = {uid for uid, seen in zip(table["uid"], table[SEEN], strict=True) if seen != seen}
    assert outside == set(uids[40:])


def test_subsets_are_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {f"clip_{m}_similarity_score": np.ones(4, np.float32) for m in "ab"}
    metadata = write_files(tmp_path / "metadata", {"uid": hex_uids(4), **columns})
    with pytest.raises(SystemExit, match="2"):
        run("--score", "cross_fitted", "--metadata_dir", metadata, "--out", tmp_path)
    assert "--subsets" in capsys.readouterr().err
