"""Run a list of commands that a user could type, one after the other, each once.

A note in `done/` says that a step is done, and it is not run again. A step that was killed is run
again, and resumes if its command can. A step would take files of other commands for its own, so a
folder belongs to one list of steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import re
import runpy
import shlex
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from datacomp_flyt.distributed.torchrun_ranks import Ranks, without_torchrun
from datacomp_flyt.engines.processes import exit_text
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.progress import Progress
from datacomp_flyt.streams import say

PRELOADED = ("torch", "torchvision", "open_clip", "webdataset", "pandas", "pyarrow.parquet")
"""Modules that are imported once for all steps, where they are installed."""

_SHUTDOWN_TIMEOUT = 20.0  # seconds for a step to remove its temporary files, or for the kernel
_PERCENT = re.compile(r"(\d+)%(?:[|)]| \()")  # in logs of tqdm, open_clip and `Progress`
_STEP = re.compile(r"step (\d+)/(\d+)")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: the name of its log and of its note.
        title: a description for people.
        words: the command: `datacomp-flyt ...`, or `python -m MODULE ...`.
        together: under torchrun, all ranks run it. Their number is not noted, so a run may resume
            on another number of GPUs.
        aside: no later step reads its files, so it is run again if its command has changed, where
            another step would be refused.
        again: it is run every time: it takes no time, and its files may be of another list of
            steps that began alike, or of inputs that have changed.
    """

    name: str
    title: str
    words: tuple[str, ...]
    together: bool = False
    aside: bool = False
    again: bool = False

    @property
    def module(self) -> tuple[str, ...]:
        """The module that is run, and its arguments."""
        if self.words[0] == "datacomp-flyt":
            return ("datacomp_flyt.cli", *self.words[1:])
        return self.words[2:]  # python -m MODULE

    @property
    def command(self) -> str:
        """The command as typed in a shell."""
        return shlex.join(self.words)


def run_steps(
    steps: Iterable[Step],
    folder: Path,
    quiet: bool = False,
    cwd: Path | None = None,
    ranks: Ranks | None = None,
    made: Iterable[str] = (),
) -> dict[str, float]:
    """Run the steps that have not been run before, and print each as a command.

    Args:
        steps: the steps in order.
        folder: notes of finished steps go to `done/`, and logs to `logs/`.
        quiet: print nothing.
        cwd: the working directory of the commands; `folder` if None.
        ranks: under torchrun, the ranks as rank 0 sees them; the others call `follow_steps`.
        made: patterns of the folders in `folder` that only the steps write: unfinished files of
            killed steps are removed there.

    Returns:
        the seconds that each step took when it was run.

    Raises:
        InputError: a step failed, with the last line of its log; or `folder` holds other steps.
    """
    _prepare(folder, made)
    seconds, before = {}, hashlib.sha256()
    for number, step in enumerate(steps, 1):
        upto = before.copy()
        upto.update(f"{shlex.join(step.words)}\n".encode())
        key = upto.hexdigest()
        if not step.aside:
            before = upto
        if not quiet:
            say("", f"=== {number}. {step.title}", f"$ {step.command}")
        note = folder / "done" / f"{step.name}.json"
        former = _seconds_of(note, key, step, folder)
        if former is not None and not step.again:
            seconds[step.name] = former
            if not quiet:
                say("  done before")
            continue
        start = time.perf_counter()
        together = ranks is not None and step.together
        environment = ranks.call(step.name) if ranks and together else without_torchrun(os.environ)
        _run(step, folder / "logs" / f"{step.name}.log", cwd or folder, quiet, environment)
        seconds[step.name] = time.perf_counter() - start
        with atomic_write(note) as file:
            file.write(json.dumps({"key": key, "seconds": seconds[step.name]}).encode())
    if ranks:
        ranks.dismiss()
    return seconds


def _prepare(folder: Path, made: Iterable[str]) -> None:
    """Make the folders of notes and logs, and remove unfinished files of killed steps."""
    (folder / "done").mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    for pattern in ("done", *made):
        for path in filter(Path.is_dir, list(folder.glob(pattern))):
            remove_unfinished(path)


def _seconds_of(note: Path, key: str, step: Step, folder: Path) -> float | None:
    """Return the seconds that a step took; None if it is not done or has to be run again.

    Raises:
        InputError: another command, or one before it, was run under this name.
    """
    noted = read_note(note)
    if not noted:
        return None
    if noted["key"] == key:
        return float(noted["seconds"])
    if step.aside:
        return None
    raise InputError(
        f"{folder} holds step {step.name} as another command, or one before it, made it: "
        "remove the folder, or name another"
    )


def follow_steps(steps: Iterable[Step], folder: Path, cwd: Path, ranks: Ranks) -> None:
    """Run the steps that rank 0 calls, on the other ranks; it runs the same steps by `run_steps`.

    Raises:
        InputError: a step failed on this rank.
    """
    by_name = {step.name: step for step in steps}
    for name, environment in ranks.calls():
        log = folder / "logs" / f"{name}.rank{ranks.rank}.log"
        _run(by_name[name], log, cwd, True, environment)


def read_note(path: Path) -> dict[str, Any]:
    """Return `key` and `seconds` of a finished step; an empty dict without a valid note."""
    try:
        note = json.loads(path.read_text())
        key, seconds = str(note["key"]), float(note["seconds"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}
    return {"key": key, "seconds": seconds} if math.isfinite(seconds) else {}


def _run(step: Step, log: Path, cwd: Path, quiet: bool, environment: dict[str, str]) -> None:
    """Run a step in a process of its own. Raises InputError if it fails."""
    log.unlink(missing_ok=True)  # it may be a link to a file of another user
    log.touch()
    # Importing torch takes seconds, so each step is a fork of one process that has imported it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_work, args=(step, str(cwd), str(log), environment))
    process.start()
    try:
        _watch(process, log, step.name, quiet)
    finally:
        process.terminate()
        process.join(_SHUTDOWN_TIMEOUT)
        process.kill()
        process.join(_SHUTDOWN_TIMEOUT)
    if process.exitcode:
        reason = log.read_text(errors="replace").strip().split("\n")[-1][-500:]
        if process.exitcode < 0:
            reason = f"{exit_text(process.exitcode)}; {reason}"
        raise InputError(
            f"step {step.name} ended with exit code {process.exitcode} ({reason}); "
            f"its whole output is in {log}"
        )


def _watch(process: BaseProcess, log: Path, name: str, quiet: bool) -> None:
    """Show the progress of a step, read from its log, until it ends."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
    bar = Progress(f"  {name}", 100, tenths=True, quiet=quiet, bar_format=form)
    try:
        while process.is_alive():
            process.join(0.5)
            bar.move_to(max([bar.done, *progress_of(log)]))
        if process.exitcode == 0:
            bar.move_to(100)
    finally:
        bar.close(process.exitcode == 0)


def progress_of(log: Path) -> Iterator[int]:
    """Yield the last percentages that the end of a log names."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        end = file.read().decode(errors="replace")
    yield from (int(percent) for percent in _PERCENT.findall(end)[-1:])
    yield from (100 * int(step) // int(last) for step, last in _STEP.findall(end)[-1:])


def _work(step: Step, cwd: str, log: str, environment: dict[str, str]) -> None:
    """Run the command as `python -m` would, in a process of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the command chooses its own
    module, *arguments = step.module
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()  # before the traceback, whose last line becomes the reason


def _end_with_parent() -> None:
    """End this process when its parent ends, so that a killed run leaves no process that writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
