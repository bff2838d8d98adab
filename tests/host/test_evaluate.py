"""DataComp's own evaluate.py reads a model that was trained through the hook in this environment.

DATACOMP_DIR       a checkout of mlfoundations/datacomp at 4a8df19 (read, never changed)
DATACOMP_PYTHON    a Python of DataComp's own environment, which can run its evaluate.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("open_clip")

from tests.host.half_of_the_pool import Half, train
from tests.open_clip_hook.running import HERE, INSTALLED, OLDEST, datacomp_dir, environment, python

EVALUATE = HERE.parents[1] / "tests" / "host" / "evaluate_datacomp.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("open_clip", [INSTALLED, OLDEST])
def test_evaluate_reads_a_hooked_checkpoint(open_clip: str, tmp_path: Path) -> None:
    """The checkpoint has a NumPy scalar, since open_clip 2.16.1 saves the learning rate as one."""
    program = os.environ.get("DATACOMP_PYTHON")
    if not program:
        pytest.skip("DATACOMP_PYTHON does not name a Python of DataComp's environment")
    env, half = environment(open_clip, DATACOMP_DIR=datacomp_dir()), Half(tmp_path)
    train(half.flags(("subset",)), env, tmp_path / "out", samples=128)
    run = tmp_path / "out" / "small_scale"
    words = (EVALUATE, datacomp_dir(), tmp_path / "host", "--train_output_dir", run)
    ended = python(*words, env={**env, "PYTHONPATH": ""}, program=program)
    assert "=== Final results ===" in ended.stdout
    assert (run / "eval_results.jsonl").read_text().count("\n") == 1
