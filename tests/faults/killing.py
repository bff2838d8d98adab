"""Kills a command at random moments, starts it again until it ends, and checks its files.

A run has a folder. Files under final names must be complete at every moment. After the end the
folder must have the same files, with the same bytes, as after an undisturbed run.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load

from tests.conftest import REPOSITORY

PATIENCE = 300.0  # seconds after which a command is said to hang
WHOM = ("group", "driver", "worker")
_BLINK = 0.004  # seconds between two checks


@dataclass(frozen=True)
class Command:
    """A Python command in the folder of its run.

    Attributes:
        name: the name of the command in reports.
        words: the arguments of `python`.
        changing: patterns of files that differ between two undisturbed runs, such as logs.
        growing: patterns of files that are replaced by later versions, or that are written in place
            and marked as done in another file.
        foreign: patterns of files that other programs write in place; they may be incomplete in a
            run that was stopped.
    """

    name: str
    words: tuple[str, ...]
    changing: tuple[str, ...] = ()
    growing: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    def is_compared(self, name: str) -> bool:
        return not _matches(name, self.changing)

    def is_final(self, name: str) -> bool:
        """Return whether the file has its last content as soon as it exists."""
        return self.is_compared(name) and not _matches(name, self.growing)

    def is_ours(self, name: str) -> bool:
        """Return whether the file has to be complete whenever it exists."""
        return not _matches(name, self.foreign)


class Whole(NamedTuple):
    """The files of an undisturbed run, its duration, and the number of files that appeared."""

    files: dict[str, bytes]
    seconds: float
    changes: int


@dataclass
class Findings:
    """The results of killing a command: counts, and descriptions of faults by kind."""

    kills: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, text: str) -> None:
        self.wrong.setdefault(kind, []).append(text)


# ---------------------------------------------------------------------------------- processes


class Running:
    """A command in a process group of its own, which is killed at the end of the block."""

    def __init__(self, command: Command, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.said = folder, folder.with_name(f"{folder.name}.said")
        self.names: set[str] = set()
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self.said.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command.words],
                cwd=folder,
                env={**os.environ, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.began = time.monotonic()
        _RUNNING.add(self.process.pid)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        # the leader was not waited for, so no other group can have its id
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        _RUNNING.discard(self.process.pid)
        self.process.wait()

    def others(self) -> list[int]:
        """Return the living processes of the group, except for the one that was started."""
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except (OSError, ValueError):  # the process has just ended
                continue
            pid = int(stat.parent.name)
            if int(group) == self.process.pid != pid and state not in "ZX":
                pids.append(pid)
        return sorted(pids)

    def is_over(self) -> bool:
        """Return whether the process that was started has ended, without waiting."""
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, ended) is not None

    def look(self) -> int:
        """Return the number of files that have appeared so far."""
        self.names |= {name for name, _ in _walk(self.folder)}
        return len(self.names)

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the command ends (return False) or until `until` returns True (return True).

        Raises:
            TimeoutError: the command does not end in time.
        """
        while not self.is_over():
            if until():
                return True
            if time.monotonic() - self.began > PATIENCE:
                raise TimeoutError(f"no end in {PATIENCE:.0f} s")
            time.sleep(_BLINK)
        return False

    def kill(self, whom: str, rng: random.Random) -> str:
        """Send SIGKILL to all processes, to the one that was started, or to one of the others.

        Returns:
            the kind of target; "group" if a worker was requested and there is none.
        """
        others = self.others() if whom == "worker" else []
        if others:
            os.kill(rng.choice(others), signal.SIGKILL)
            return "worker"
        if whom == "driver":
            os.kill(self.process.pid, signal.SIGKILL)
            return whom
        os.killpg(self.process.pid, signal.SIGKILL)
        return "group"

    def code(self) -> int:
        """Return the exit code, after the other processes have ended as well.

        Raises:
            TimeoutError: other processes do not end.
        """
        end = time.monotonic() + 20
        while left := self.others():
            if time.monotonic() > end:
                raise TimeoutError(f"{len(left)} of its processes go on without it")
            time.sleep(0.02)
        _RUNNING.discard(self.process.pid)
        return self.process.wait()

    def last_words(self) -> str:
        return self.said.read_text(errors="replace").strip()[-1500:]


_RUNNING: set[int] = set()


def end_all() -> None:
    """Kill the commands of all threads when this process is ended."""
    for group in list(_RUNNING):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


# -------------------------------------------------------------------------------------- files


def _walk(folder: Path) -> list[tuple[str, str]]:
    """Return relative name and path of the files below a folder; some may be deleted already."""
    return [
        (os.path.relpath(os.path.join(parent, name), folder), os.path.join(parent, name))
        for parent, _, names in os.walk(folder)
        for name in names
    ]


def files_in(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder, including hidden ones."""
    contents = {}
    for name, path in _walk(folder):
        try:
            contents[name] = Path(path).read_bytes()
        except FileNotFoundError:
            continue
    return contents


def is_temporary(name: str) -> bool:
    """Return whether a file has a temporary name; open_clip uses `tmp.pt`."""
    return any(part.startswith(".") for part in name.split("/")) or name.endswith("/tmp.pt")


def problem(name: str, content: bytes) -> str | None:
    """Return why a file is not a complete file of its format; None if it is."""
    try:
        if (suffix := Path(name).suffix) in _READERS:
            _READERS[suffix](content)
    except Exception as error:
        return f"{name} ({len(content)} bytes) is not whole: {type(error).__name__} {error}"[:300]
    return None


def _zip(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if damaged := archive.testzip():
            raise ValueError(damaged)


def _npy(content: bytes) -> None:
    file = io.BytesIO(content)
    np.load(file, allow_pickle=False)
    if file.read(1):
        raise ValueError("bytes after the array")


def _html(content: bytes) -> None:
    if not content.rstrip().endswith(b"</html>"):
        raise ValueError("no closing tag")


def _lines(content: bytes) -> None:
    for line in content.splitlines():
        json.loads(line)


_READERS: dict[str, Callable[[bytes], object]] = {
    ".parquet": lambda content: pq.read_table(io.BytesIO(content)).validate(full=True),
    ".npy": _npy,
    ".npz": _zip,
    ".pt": _zip,
    ".safetensors": load,
    ".json": json.loads,
    ".jsonl": _lines,
    ".html": _html,
}


def _timeless(name: str, content: bytes) -> bytes:
    """Remove measured times from JSON."""
    return _TIMES.sub(b"", content) if name.endswith((".json", ".jsonl")) else content


_TIMES = re.compile(rb'"(seconds|pairs_per_second)": [-+.\de]+')


def _same(name: str, one: bytes, other: bytes) -> bool:
    if one == other or _timeless(name, one) == _timeless(name, other):
        return True
    return name.endswith(".pt") and problem(name, other) is None and _same_state(one, other)


def _same_state(one: bytes, other: bytes) -> bool:
    """Compare torch files by content; their bytes depend on which equal strings share an object."""
    import torch

    def equal(a: object, b: object) -> bool:
        if type(a) is not type(b):
            return False
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return [*a] == [*b] and equal([*a.values()], [*b.values()])
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return equal(*(torch.load(io.BytesIO(each), weights_only=True) for each in (one, other)))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


# -------------------------------------------------------------------------------------- kills


def undisturbed(command: Command, folder: Path) -> Whole:
    """Run the command twice without kills, and check that both runs leave the same files.

    Raises:
        RuntimeError: a run fails, or the files differ.
    """
    first = _run_whole(command, folder)
    whole = _run_whole(command, folder)
    if wrong := differences(command, first.files, whole.files):
        raise RuntimeError(f"two undisturbed runs of {command.name} differ: {wrong}")
    return whole


def _run_whole(command: Command, folder: Path) -> Whole:
    shutil.rmtree(folder, ignore_errors=True)
    with Running(command, folder) as running:
        running.wait(lambda: running.look() < 0)
        seconds = time.monotonic() - running.began
        if running.code():
            raise RuntimeError(f"{command.name} failed undisturbed:\n{running.last_words()}")
        return Whole(files_in(folder), seconds, max(running.look(), 1))


def differences(command: Command, whole: dict[str, bytes], files: dict[str, bytes]) -> list[str]:
    """List what is missing, additional or different in a finished run."""
    faults = [f"{name} is missing" for name in sorted(whole.keys() - files.keys())]
    faults += [f"{name} is left" for name in sorted(files.keys() - whole.keys())]
    for name in sorted(whole.keys() & files.keys()):
        if command.is_compared(name) and not _same(name, whole[name], files[name]):
            faults.append(f"{name} differs ({len(whole[name])} and {len(files[name])} bytes)")
    return faults


def partial(command: Command, whole: dict[str, bytes], files: dict[str, bytes]) -> list[str]:
    """List incomplete files under final names in a run that was stopped."""
    faults = []
    for name, content in sorted(files.items()):
        if is_temporary(name) or not command.is_ours(name):
            continue
        if text := problem(name, content):
            faults.append(text)
        elif command.is_final(name) and not _same(name, whole.get(name, content), content):
            faults.append(f"{name} is not what it is to become")
    return faults


def kill_often(
    command: Command,
    folder: Path,
    whole: Whole,
    kills: int,
    rng: random.Random,
    on_kill: Callable[[], object] = lambda: None,
) -> Findings:
    """Kill the command, one to three times in a run, and check what it leaves.

    Half of the kills come after a random part of a run's duration, the others when a random one of
    its files appears. If the run ends before that, there is no kill.
    """
    findings = Findings()
    while sum(findings.kills.values()) < kills:
        shutil.rmtree(folder, ignore_errors=True)
        left = min(rng.randint(1, 3), kills - sum(findings.kills.values()))
        ended = False
        while left and not ended:
            before = sum(findings.kills.values())
            ended = start_and_kill(command, folder, whole, rng, findings)
            if sum(findings.kills.values()) > before:
                left -= 1
                on_kill()
        try:
            if not ended:
                _run_to_the_end(command, folder, findings)
        except TimeoutError as error:
            findings.note("hangs", f"{command.name}: {error}")
            continue
        findings.ended += 1
        for text in differences(command, whole.files, files_in(folder)):
            findings.note("mismatches", f"{command.name}: {text}")
    return findings


def start_and_kill(
    command: Command, folder: Path, whole: Whole, rng: random.Random, findings: Findings
) -> bool:
    """Start the command and kill some of its processes; return whether it ended by itself.

    The command may fail if a worker was killed. A failure without a kill is a finding.
    """
    whom = rng.choice(WHOM)
    moment, file = rng.uniform(0, whole.seconds), rng.randint(1, whole.changes)
    by_time = rng.random() < 0.5
    with Running(command, folder) as running:
        num_earlier = running.look()  # files of earlier starts
        began = running.began

        def now() -> bool:
            if by_time:
                return time.monotonic() - began > moment
            return running.look() >= max(file, num_earlier + 1)

        try:
            killed = running.wait(now)
            if killed:
                whom = running.kill(whom, rng)
                findings.kills[whom] += 1
                running.wait()
            code = running.code()
        except TimeoutError as error:
            findings.note("hangs", f"{command.name}, {whom} killed: {error}")
            return False
        for text in partial(command, whole.files, files_in(folder)):
            findings.note("partial files", f"{command.name}, {whom} killed: {text}")
        if code and not killed:
            findings.note("failures", f"{command.name}: {running.last_words()}")
        return code == 0 or not killed


def _run_to_the_end(command: Command, folder: Path, findings: Findings) -> None:
    with Running(command, folder) as running:
        running.wait()
        if running.code():
            findings.note("failures", f"{command.name}: {running.last_words()}")
