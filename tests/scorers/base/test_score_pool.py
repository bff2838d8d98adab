"""Scoring a pool: what is finished stays, what failed is named, and kills leave no trace."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from datacomp_flyt import threads
from datacomp_flyt.errors import InputError
from datacomp_flyt.scorers.clip_score import ClipScore
from datacomp_flyt.scorers.norm_sim_d import NormSimD
from datacomp_flyt.scorers.vas import Vas
from tests.conftest import refusal
from tests.scorers.base.inline import (
    Killed,
    KilledEngine,
    run,
    table_bytes,
    write_pool,
)
from tests.scorers.made_pairs import leaning, pairs


class Flaky(ClipScore):
    """Fails on each shard as often as a file says."""

    def score(self, shard, state):
        path = Path(shard.path + ".fails")
        if path.exists() and (left := int(path.read_text())):
            path.write_text(str(left - 1))
            raise OSError("the disk is gone")
        return super().score(shard, state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClipScore(source="npz"),
        Vas,
        lambda: NormSimD(fraction=0.3, num_rounds=12, candidates=9),
    ],
)
def test_killed_anywhere_and_gone_on_with(make: Callable, tmp_path: Path) -> None:
    arrays = {"b32_img": leaning(60), "b32_txt": leaning(60, seed=1)}
    write_pool(tmp_path / "metadata", arrays, [20, 10, 30])
    run(make(), tmp_path / "metadata", tmp_path / "undisturbed")
    whole = table_bytes(tmp_path / "undisturbed")
    assert set(whole) == {"_settings.json", *(f"shard_{number}.parquet" for number in range(3))}
    for after in range(1, 5):  # shards until each kill
        folder = tmp_path / f"after_{after}"
        for _ in range(100):
            try:
                run(make(), tmp_path / "metadata", folder, KilledEngine(after))
            except Killed:
                continue
            break
        assert table_bytes(folder) == whole


def test_finished_shards_are_not_redone(tmp_path: Path) -> None:
    write_pool(tmp_path / "metadata", pairs(9), [4, 5])
    report = run(ClipScore(source="npz"), tmp_path / "metadata", tmp_path / "scores")
    assert (report.num_scored, report.num_finished_before) == (2, 0)
    (tmp_path / "scores/vit-b-32/shard_1.parquet").unlink()
    before = (tmp_path / "scores/vit-b-32/shard_0.parquet").stat()
    report = run(ClipScore(source="npz"), tmp_path / "metadata", tmp_path / "scores")
    assert (report.num_scored, report.num_finished_before) == (1, 1)
    assert (tmp_path / "scores/vit-b-32/shard_0.parquet").stat() == before


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write_pool(tmp_path / "metadata", pairs(9), [9])
    run(ClipScore(source="npz"), tmp_path / "metadata", tmp_path / "scores")
    other = ClipScore(source="npz", renormalize=True)
    message = refusal(run, other, tmp_path / "metadata", tmp_path / "scores")
    assert "made with renormalize False, now it is True" in message
    settings = json.loads((tmp_path / "scores/vit-b-32/_settings.json").read_text())
    assert settings["source"] == "npz"


class Broken(ClipScore):
    """Every shard fails."""

    def score_rows(self, shard, state, counts):
        raise InputError("there is no such array")


def test_settings_of_a_run_that_finished_nothing_are_replaced(tmp_path: Path) -> None:
    write_pool(tmp_path / "metadata", pairs(9), [4, 5])
    report = run(Broken(source="npz"), tmp_path / "metadata", tmp_path / "scores")
    assert (len(report.failed), report.num_scored) == (2, 0)
    corrected = ClipScore(source="npz", renormalize=True)
    assert run(corrected, tmp_path / "metadata", tmp_path / "scores").num_scored == 2
    run(corrected, tmp_path / "metadata", tmp_path / "anew")
    assert table_bytes(tmp_path / "scores") == table_bytes(tmp_path / "anew")


def test_a_pass_of_other_settings_is_refused(tmp_path: Path) -> None:
    """Its summaries would be taken for those of the new settings."""
    write_pool(tmp_path / "metadata", pairs(9), [3, 3, 3])
    first = NormSimD(fraction=0.3, num_rounds=2, candidates=9)
    with contextlib.suppress(Killed):
        run(first, tmp_path / "metadata", tmp_path / "scores", KilledEngine(1))
    assert not list((tmp_path / "scores/normsim_d").glob("*.parquet"))
    other = NormSimD(fraction=0.5, num_rounds=2, candidates=9)
    message = refusal(run, other, tmp_path / "metadata", tmp_path / "scores")
    assert "made with fraction 0.3, now it is 0.5" in message


def test_tables_of_others_are_refused(tmp_path: Path) -> None:
    write_pool(tmp_path / "metadata", pairs(9), [9])
    write_pool(tmp_path / "scores/vit-b-32", pairs(9), [9])
    scorer = ClipScore(source="npz")
    message = refusal(run, scorer, tmp_path / "metadata", tmp_path / "scores")
    assert "that this command did not make" in message
    (tmp_path / "scores/vit-b-32/_settings.json").write_text("{")
    message = refusal(run, scorer, tmp_path / "metadata", tmp_path / "scores")
    assert "settings.json cannot be read" in message


def test_failures_are_retried_then_named(tmp_path: Path) -> None:
    write_pool(tmp_path / "metadata", pairs(9), [3, 3, 3])
    (tmp_path / "metadata/shard_0.parquet.fails").write_text("2")
    (tmp_path / "metadata/shard_2.parquet.fails").write_text("3")
    report = run(Flaky(source="npz"), tmp_path / "metadata", tmp_path / "scores")
    assert {name: str(error) for name, error in report.failed.items()} == {
        "shard_2": "the disk is gone"
    }
    there = sorted(path.name for path in (tmp_path / "scores/vit-b-32").glob("*.parquet"))
    assert there == ["shard_0.parquet", "shard_1.parquet"]
    assert not run(Flaky(source="npz"), tmp_path / "metadata", tmp_path / "scores").failed


def test_a_pool_scorer_keeps_what_its_shards_said(tmp_path: Path) -> None:
    """One broken file: the passes over the others are not lost, and no score is written."""
    write_pool(tmp_path / "metadata", pairs(9), [3, 3, 3])
    npz = tmp_path / "metadata/shard_1.npz"
    whole = npz.read_bytes()
    npz.write_bytes(whole[:-40])
    report = run(Vas(), tmp_path / "metadata", tmp_path / "scores")
    assert list(report.failed) == ["shard_1"]
    assert "shard_1.npz cannot be read as npz" in str(report.failed["shard_1"])
    assert not list((tmp_path / "scores/vas").glob("*.parquet"))
    assert len(list((tmp_path / "scores/vas/_passes/0").glob("*.npz"))) == 2
    npz.write_bytes(whole)
    assert not run(Vas(), tmp_path / "metadata", tmp_path / "scores").failed
    run(Vas(), tmp_path / "metadata", tmp_path / "anew")
    assert table_bytes(tmp_path / "scores") == table_bytes(tmp_path / "anew")


def test_passes_are_not_lost_where_storage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment it is nothing; always, the sentence says to try again before anything else."""
    monkeypatch.setattr(threads, "_PAUSES", (0, 0))
    write_pool(tmp_path / "metadata", pairs(9), [3, 3, 3])
    with pytest.raises(Killed):
        run(Vas(), tmp_path / "metadata", tmp_path / "scores", KilledEngine(4))
    opened, left = Path.open, [2]

    def failing(path, *args, **options):
        if path.suffix == ".npz" and "_passes" in path.parts and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", failing)
    left[0] = 99
    message = refusal(run, Vas(), tmp_path / "metadata", tmp_path / "scores")
    assert "Stale file handle): run it again" in message
    left[0] = 2
    assert not run(Vas(), tmp_path / "metadata", tmp_path / "scores").failed
    assert left == [0]


def test_counts_add_up(tmp_path: Path) -> None:
    arrays = pairs(12)
    arrays["b32_img"][[1, 8]] = np.inf
    arrays["b32_txt"][5] *= 3
    write_pool(tmp_path / "metadata", arrays, [6, 6])
    report = run(ClipScore(source="npz"), tmp_path / "metadata", tmp_path / "scores")
    assert dict(report.counts) == {
        "embedding not finite or all zero": 2,
        "embedding is not of unit norm": 1,
    }
    assert (report.num_examples, report.num_without_score) == (12, 2)
