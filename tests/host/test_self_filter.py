"""A round of Self-Filtering with DataComp's own train.py, and its subset in DataComp's baselines.

DATACOMP_DIR       a checkout of mlfoundations/datacomp at 4a8df19 (read, never changed)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip")

from tests.open_clip_hook.running import (
    HEAD,
    HERE,
    INSTALLED,
    OLDEST,
    SHARDS,
    SHRUNK_DATACOMP,
    STAND_IN,
    datacomp_dir,
    environment,
    python,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAMPLES = 256


def run_a_round(folder: Path, env: dict[str, str]) -> None:
    """Run a round in `folder/run` on the demo pool, with a train.py whose scale `debug` is tiny."""
    script = folder / "train.py"
    runs = f"import runpy\nrunpy.run_path({str(SHRUNK_DATACOMP)!r}, run_name='__main__')\n"
    script.write_text(runs)
    model = HERE / "model_configs" / "hook-tiny.json"
    flags = ("--shards_dir", SHARDS, "--out", "run", "--rounds", "1", "--model_config", model)
    budget = ("--samples_per_round", str(SAMPLES), "--no_reports")
    trainer = (script, "--scale", "debug", "--precision", "fp32", "--workers", "1")
    env = {**env, "SHRUNK_SCALE": json.dumps({"train_num_samples": SAMPLES})}
    words = ("-m", "datacomp_flyt.cli", "self_filter", *flags, *budget, "--", *trainer)
    python(*words, "--num_checkpoints", "1", env=env, cwd=folder)
    assert np.load(folder / "run" / "subset.npy").shape == (SAMPLES,)


def test_the_stand_in(tmp_path: Path) -> None:
    run_a_round(tmp_path, environment("installed", DATACOMP_DIR=STAND_IN))


@pytest.mark.parametrize("open_clip", [INSTALLED, OLDEST, HEAD])
def test_datacomps_own(open_clip: str, tmp_path: Path) -> None:
    run_a_round(tmp_path, environment(open_clip, DATACOMP_DIR=datacomp_dir()))
    assert (
        tmp_path / "run/round_0/runs/model/info.pkl"
    ).exists()  # DataComp's evaluate.py reads this file
