"""Holds locks in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from datacomp_flyt.files.locks import lock_outputs
from tests.conftest import REPOSITORY

HOLD = """
import sys, time
from datacomp_flyt.files.locks import lock_outputs
with lock_outputs(*sys.argv[1:]):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(*outputs: Path) -> subprocess.Popen[str]:
    """Start a process, and wait until it holds locks."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, outputs)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def take(*outputs: Path) -> None:
    """Lock outputs and release them."""
    with lock_outputs(*outputs):
        pass
