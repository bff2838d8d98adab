"""A changed clock, and changed times of files, have no effect."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.baselines_plugin.large_pool import small_slices
from tests.conftest import make_pool

POOL = make_pool(600)
MIX = (
    *("--name", "m_flyt", "--scoring_model", "paper", "--num_samples", 900),
    *("--repetition_penalty", 0.4),
)
TIMES = {"1970": 1.0, "2100": 4102444800.0}


def set_clock(monkeypatch: pytest.MonkeyPatch, to: float) -> None:
    """Stop the clock, so that all times are equal."""
    monkeypatch.setattr(time, "time", lambda: to)
    monkeypatch.setattr(time, "time_ns", lambda: int(to * 1e9))


def date(folder: Path, to: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (to, to))


@pytest.mark.parametrize("year", TIMES)
def test_select(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: str) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(POOL, tmp_path).write(2)
    assert in_process(*job.flags(*MIX)).code == 0
    wanted = job.save_path.read_bytes()
    in_files = job.flags(*MIX, "--work_dir", "work")
    date(tmp_path, time.time())
    with small_slices() as engine:
        set_clock(monkeypatch, TIMES[year])
        assert in_process(*in_files).code == 0
        assert job.save_path.read_bytes() == wanted
        done = len(engine.names)
        date(tmp_path / "work", TIMES[year])  # finished steps are not repeated
        assert in_process(*in_files).code == 0
        assert job.save_path.read_bytes() == wanted
        assert len(engine.names) == done
        date(job.metadata, TIMES[year])
        date(job.scores, TIMES[year])
        # the command cannot know that these are the same files
        assert_refused(in_process(*in_files), "--work_dir work", "before they changed")
    assert in_process(*job.flags(*MIX)).code == 0
    assert job.save_path.read_bytes() == wanted


@pytest.mark.parametrize("year", TIMES)
def test_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: str) -> None:
    """Finished shards are not scored again and others are, whatever the times of the files."""
    pytest.importorskip("torch")
    from datacomp_flyt.scorers.base import score as scoring
    from tests.cli.scoring import NPZ, files_in, score
    from tests.engines.here import Here

    engine = Here()

    def make_engine(*_: Any, **__: Any) -> Here:
        return engine

    monkeypatch.setattr(scoring, "make_engine", make_engine)
    assert score(tmp_path / "scores", "norm_sim_d", *NPZ, "--num_rounds", "4") == 0
    whole, done = files_in(tmp_path / "scores"), len(engine.names)
    set_clock(monkeypatch, TIMES[year])
    date(tmp_path / "scores", TIMES[year])
    gone = sorted((tmp_path / "scores").rglob("*.parquet"))[0]
    gone.unlink()
    assert score(tmp_path / "scores", "norm_sim_d", *NPZ, "--num_rounds", "4") == 0
    assert files_in(tmp_path / "scores") == whole
    assert engine.names[done:].count(gone.stem) >= 1
    assert score(tmp_path / "scores", "norm_sim_d", *NPZ, "--num_rounds", "4") == 0
    assert files_in(tmp_path / "scores") == whole
