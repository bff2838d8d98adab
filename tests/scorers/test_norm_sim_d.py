"""NormSim_2-D: every example falls in the round in which the slow definition drops it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.scorers.norm_sim_d import NormSimD
from tests.conftest import hex_uids, refusal, sorted_uids
from tests.oracles import scores as oracle
from tests.oracles.selection import parse_uid
from tests.scorers.base.inline import InlineEngine, run, scores_of, write_pool
from tests.scorers.made_pairs import leaning, pairs, unit


class CountingEngine(InlineEngine):
    """An engine that counts the passes over the pool."""

    passes = 0

    def run(self, make, items):
        self.passes += 1
        yield from super().run(make, items)


@pytest.mark.parametrize(("num_rounds", "candidates"), [(1, 1000), (7, 40), (30, 25), (30, 1000)])
@pytest.mark.parametrize("first_share", [None, 0.5])
def test_equals_the_oracle(
    num_rounds: int, candidates: int, first_share: float | None, tmp_path: Path
) -> None:
    images = leaning(160)
    uids = hex_uids(160)
    first = np.ones(160, np.bool_)
    path = None
    if first_share:
        first = np.random.default_rng(1).random(160) < first_share
        path = str(tmp_path / "first.npy")
        chosen = [uid for uid, inside in zip(uids, first, strict=True) if inside]
        write_subset(Path(path), sorted_uids(chosen), np.full(len(chosen), 3))
    scorer = NormSimD(fraction=0.2, num_rounds=num_rounds, first_stage=path, candidates=candidates)
    rounds = scores_of(scorer, {"b32_img": images}, tmp_path, sizes=[50, 60, 50])
    expected = oracle.norm_sim_d(images, first, 32, num_rounds, [parse_uid(uid) for uid in uids])
    assert rounds.tolist() == expected.tolist()
    assert np.count_nonzero(rounds == num_rounds + 1) == 32


def test_ties_are_by_uid(tmp_path: Path) -> None:
    """Three kinds of rows only: whole rounds fall among equal values."""
    images = unit(np.array([[3, 1.0], [2, 2.0], [1, 5.0]])).astype("f4")[np.arange(60) % 3]
    rounds = scores_of(
        NormSimD(fraction=0.3, num_rounds=9, candidates=10), {"b32_img": images}, tmp_path, [30, 30]
    )
    order = [parse_uid(uid) for uid in hex_uids(60)]
    expected = oracle.norm_sim_d(images, np.ones(60), 18, 9, order)
    assert rounds.tolist() == expected.tolist()


def test_far_fewer_passes_than_rounds(tmp_path: Path) -> None:
    images = leaning(3000, width=24)
    write_pool(tmp_path / "metadata", {"b32_img": images}, [1500, 1500])
    engine = CountingEngine()
    scorer = NormSimD(fraction=0.66, num_rounds=200, candidates=1500)
    report = run(scorer, tmp_path / "metadata", tmp_path / "scores", engine)
    assert not report.failed
    assert engine.passes < 60


def test_more_wanted_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "first.npy"
    write_subset(path, sorted_uids(hex_uids(40)[:5]))
    rounds = scores_of(
        NormSimD(fraction=0.5, num_rounds=4, first_stage=str(path)),
        {"b32_img": leaning(40)},
        tmp_path,
    )
    assert rounds.tolist() == [5] * 5 + [0] * 35


def test_unusable_rows_are_nan(tmp_path: Path) -> None:
    images = leaning(50)
    images[[4, 30]] = 0
    rounds = scores_of(
        NormSimD(fraction=0.2, num_rounds=5), {"b32_img": images}, tmp_path, [25, 25]
    )
    usable = np.setdiff1d(np.arange(50), [4, 30])
    order = [parse_uid(uid) for uid in np.array(hex_uids(50))[usable]]
    expected = oracle.norm_sim_d(images[usable], np.ones(48), 9, 5, order)
    assert np.isnan(rounds[[4, 30]]).all()
    assert rounds[usable].tolist() == expected.tolist()


def test_files_without_a_usable_row(tmp_path: Path) -> None:
    images = leaning(50)
    images[20:30] = 0
    rounds = scores_of(
        NormSimD(fraction=0.2, num_rounds=5), {"b32_img": images}, tmp_path, [20, 10, 0, 20]
    )
    usable = np.setdiff1d(np.arange(50), np.arange(20, 30))
    order = [parse_uid(uid) for uid in np.array(hex_uids(50))[usable]]
    expected = oracle.norm_sim_d(images[usable], np.ones(40), 8, 5, order)
    assert np.isnan(rounds[20:30]).all()
    assert rounds[usable].tolist() == expected.tolist()


def test_more_dropped_at_once_than_may_be_in_memory(tmp_path: Path) -> None:
    write_pool(tmp_path / "metadata", {"b32_img": leaning(50)}, [50])
    scorer = NormSimD(fraction=0.2, num_rounds=2, candidates=30)
    error = refusal(lambda: run(scorer, tmp_path / "metadata", tmp_path / "scores"))
    assert "--num_rounds 2 drops 20 examples a round, and --candidates 30" in error


def test_the_first_stage_must_be_a_subset(tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", pairs(3)["b32_img"])
    error = refusal(lambda: NormSimD(first_stage=str(tmp_path / "floats.npy")))
    assert "floats.npy is no subset" in error
