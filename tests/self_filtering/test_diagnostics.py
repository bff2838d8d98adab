"""Diagnostics of rounds: figures by hand, and the files of a whole run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.self_filtering.diagnostics import (
    area_under_curve,
    effective_number,
    judge,
    noise_of_subset,
    overlap,
    rank_correlation,
)
from datacomp_flyt.self_filtering.rounds_page import write_page
from tests.conftest import hex_uids, refusal, write_files, write_parquet
from tests.oracles.selection import parse_uid, uid_array


def test_overlap_compares_shares() -> None:
    one = np.array([1.0, 1, 0, 0])
    assert overlap(one, 7 * one) == 1
    assert overlap(one, np.array([0.0, 0, 3, 1])) == 0
    assert overlap(one, np.array([1.0, 0, 1, 0])) == pytest.approx(1 / 3)
    assert overlap(one, np.array([3.0, 1, 0, 0])) == pytest.approx(0.75 / 1.25)


def test_effective_number() -> None:
    assert effective_number(np.array([2.0, 2, 2, 0])) == pytest.approx(3)
    assert effective_number(np.zeros(3)) == 0
    assert 1 < effective_number(np.array([9.0, 1])) < 2


def test_rank_correlation_is_scipy_s() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 6, 80).astype(float)
    other = one + rng.normal(0, 2, 80).round()
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    one[3] = np.nan
    assert rank_correlation(one, other) == pytest.approx(
        spearmanr(np.delete(one, 3), np.delete(other, 3)).statistic
    )
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_area_under_curve_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(1)
    clean, noise = rng.integers(0, 9, 30).astype(float), rng.integers(-3, 6, 20).astype(float)
    wins = [(a > b) + (a == b) / 2 for a, b in itertools.product(clean, noise)]
    assert area_under_curve(clean, noise) == pytest.approx(np.mean(wins))
    assert np.isnan(area_under_curve(clean, np.empty(0)))


def test_noise_by_hand() -> None:
    kinds = np.array(["true", "true", "swapped", "blank", "swapped", "true"], object)
    noisy = kinds != "true"
    noise = noise_of_subset(np.array([3, 0, 1, 0, 0, 0]), kinds, noisy)
    assert noise["clean_precision"] == 3 / 4
    assert noise["clean_recall"] == 1 / 3
    assert noise["noise_precision"] == 2 / 4  # left out: two true, one blank, one swapped
    assert noise["noise_recall"] == 2 / 3
    assert noise["kinds"] == {"true": 3 / 4, "swapped": 1 / 4, "blank": 0}


def run_dir(folder: Path) -> tuple[Path, Path, list[str]]:
    """Make the folder of a run of one round with 40 pairs, half of them noise, and no models."""
    uids = hex_uids(40)
    array = uid_array(sorted(map(parse_uid, uids)))
    texts = [f"cat {'dog' if row % 2 else 'owl'}" for row in range(40)]
    write_files(folder / "round_0" / "metadata", {"uid": uids, "text": texts}, 2, 1)
    scores = {"uid": uids, "self_filtering": np.arange(40, dtype=np.float32)}
    write_files(folder / "round_0" / "scores" / "self_filtering", scores, 1)
    write_subset(folder / "round_0" / "subset.npy", array)
    (folder / "round_1").mkdir()
    best = uid_array(sorted(map(parse_uid, uids[30:])))
    write_subset(folder / "round_1" / "subset.npy", best, np.full(10, 4))
    write_subset(folder / "round_1" / "confident.npy", best, np.full(10, 4))
    kinds = ["swapped"] * 20 + ["true"] * 20
    labels = write_parquet(folder / "kinds.parquet", {"uid": uids, "kind": kinds})
    return folder, Path(labels), uids


def test_judging_a_run(tmp_path: Path) -> None:
    folder, labels, _ = run_dir(tmp_path)
    for number in (0, 1):
        judge(folder, number, labels=labels, noise_kinds=["swapped"])
    first, last = (
        json.loads((folder / f"round_{number}" / "diagnostics.json").read_text())
        for number in (0, 1)
    )
    assert first["subset"]["clean_precision"] == 0.5
    assert first["auc"] == first["auc_in_subset"] == {"self_filtering": 1.0}
    assert (first["draws"], last["draws"], last["distinct"], last["effective"]) == (40, 40, 10, 10)
    assert last["subset"]["clean_precision"] == 1
    assert last["confident"]["noise_precision"] == 20 / 30
    assert last["confident"]["noise_recall"] == 1
    assert last["overlap"] == pytest.approx(0.25 / 1.75)
    assert last["word_coverage"] == 1
    assert last["effective_words"] == pytest.approx(np.exp(0.5 * np.log(2) + np.log(4) / 2))
    assert last["auc"] == {}  # the round has no model that scores
    page = write_page(folder, 1).read_text()
    assert "clean pairs" in page.lower()
    assert page.count("<svg role") >= 4
    assert "nan" not in page


def test_wrong_labels(tmp_path: Path) -> None:
    folder, _, _ = run_dir(tmp_path)
    wrong = write_parquet(tmp_path / "wrong.parquet", {"uid": hex_uids(3), "sort": ["a"] * 3})
    assert "--labels" in refusal(judge, folder, 0, labels=Path(wrong), noise_kinds=["a"])
    other = {"uid": hex_uids(3, "other"), "kind": ["a"] * 3}
    other_path = write_parquet(tmp_path / "other.parquet", other)
    message = refusal(judge, folder, 0, labels=Path(other_path), noise_kinds=["a"])
    assert "none of the pool" in message
    assert not (folder / "round_0" / "diagnostics.json").exists()
