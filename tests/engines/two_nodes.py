"""A Ray cluster of two nodes on this machine, one of which can be killed (Linux)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "TWO_NODES"
"""An environment variable of every process of a node: the test process, and "head" or "second"."""
HOST = "127.0.0.1"
SECONDS = 50


class TwoNodes:
    """The cluster of `two_nodes`. Each node has one CPU, and thus one worker.

    Attributes:
        address: for `RayEngine` and `ray.init`.
    """

    def __init__(self, folder: Path) -> None:
        self._run = uuid.uuid4().hex
        self._folder = folder
        self.address = f"{HOST}:{_free_port()}"

    def start(self) -> None:
        """Wait until both nodes have joined."""
        self._start(
            "head",
            "--head",
            f"--port={self.address.rpartition(':')[2]}",
            f"--temp-dir={self._folder}",
            "--include-dashboard=false",
            f"--ray-client-server-port={_free_port()}",
        )
        self._start("second", f"--address={self.address}")

    def kill_second_node(self) -> None:
        """Send SIGKILL to all processes of the second node, as if its machine were lost."""
        self._kill("second")

    def close(self) -> None:
        """End both nodes."""
        self._kill("second")
        self._kill("head")

    def _start(self, node: str, *flags: str) -> None:
        # in Python, as `ray` need not be on the path
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", *flags]
        command += [f"--node-ip-address={HOST}", "--disable-usage-stats"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        log = self._folder / f"start_{node}.txt"
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                env=os.environ
                | {MARK: f"{self._run} {node}", "RAY_health_check_period_ms": "1000"}
                | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=SECONDS,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(log.read_text())

    def _kill(self, node: str) -> None:
        end = time.monotonic() + SECONDS
        while pids := _processes(f"{MARK}={self._run} {node}"):
            if time.monotonic() > end:
                raise TimeoutError(f"processes of Ray's {node} node do not end: {pids}")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Start both nodes, and end them at the end."""
    # short: Ray puts sockets into it, whose paths may have some 100 characters
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes = TwoNodes(folder)
        stack.callback(nodes.close)
        nodes.start()
        yield nodes


def _processes(variable: str) -> list[int]:
    """Return the processes that have a text in their environment and are no zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
