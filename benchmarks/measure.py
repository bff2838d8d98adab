"""Measures wall time and peak memory of this process or a child, and describes the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datacomp_flyt.threads import default_num_workers

ROOT = Path(__file__).resolve().parents[1]

# The ru_maxrss of a child starts at the peak of the process that forked it, even after exec. So the
# measured command is started by an interpreter of its own, which has only 10 MB.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps([seconds, usage.ru_maxrss * unit, os.waitstatus_to_exitcode(status)]))
"""


@dataclass(frozen=True)
class Child:
    """A command that succeeded: seconds from start to exit, and peak resident bytes.

    If a command has child processes, the peak is that of the largest process.
    """

    seconds: float
    peak_bytes: int


def run_child(command: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
    """Run a command in the repository's root; `env` adds to the environment.

    Raises:
        SystemExit: the command failed; the message has the end of its stderr.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} did not start:\n{done.stderr[-2000:]}")
    seconds, peak_bytes, code = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{done.stderr[-2000:]}")
    return Child(seconds, peak_bytes)


def reset_peak_memory() -> bool:
    """Reset the peak of `memory` to the resident memory; return False if that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(field: str) -> int | None:
    """Return the resident bytes of this process: `VmRSS` now, `VmHWM` peak; None without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class PeakMemory:
    """Measures the largest rise of resident memory, in MB, over several blocks of code."""

    def __init__(self) -> None:
        self.megabytes: float | None = None

    def __enter__(self) -> None:
        self._known = reset_peak_memory()
        self._before = memory("VmRSS")

    def __exit__(self, *_: object) -> None:
        peak = memory("VmHWM")
        if self._known and peak is not None and self._before is not None:
            self.megabytes = max((peak - self._before) / 1e6, self.megabytes or 0.0)


def machine() -> dict[str, Any]:
    """Describe the machine: versions and processors."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "cpus_usable": default_num_workers(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def add_dir_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--dir`, the folder of generated pools."""
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "datacomp_flyt_benchmarks",
        help="folder of generated pools, which later runs use again (default: %(default)s)",
    )


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def rounded(value: Any) -> Any:
    """Round the floats of a result to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def print_result(name: str, result: dict[str, Any]) -> None:
    """Print a result and the machine as one line of JSON on stdout."""
    print(json.dumps({"benchmark": name, **rounded(result), "machine": machine()}))
