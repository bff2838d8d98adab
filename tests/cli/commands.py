"""Runs commands in this process, and programs in a process of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datacomp_flyt.cli import main
from tests.conftest import REPOSITORY, make_pool
from tests.engines.contract import pids_in

POOL = make_pool(30)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
STOPPED = "no file is half-written; the same command goes on or begins anew"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run `datacomp-flyt` and return its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@contextlib.contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a Python program in a process group of its own; the group is killed at the end."""
    with subprocess.Popen(
        [sys.executable, *words],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=reset_signals,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def reset_signals() -> None:
    """Reset signals that this process may ignore, as background jobs of a shell do."""
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)


def marked(folder: Path, number: int = 1) -> list[int]:
    """Wait for processes to write their ids into a folder, and return the ids."""
    return pids_in(folder, number, 60)
