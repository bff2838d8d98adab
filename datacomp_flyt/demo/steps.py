"""The tour's steps as commands that a user would type, and running them one after the other.

That a step is done is remembered in `done/`, and it is not done again. A step that was killed is
given again, and goes on from where it was where its command can. Files of other commands would be
taken for its own, so a folder is for one list of steps.
"""

from __future__ import annotations

import hashlib
import json
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

from tqdm import tqdm

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.subset import atomic_write

_PRELOADED = ("torch", "torchvision", "open_clip", "webdataset", "pandas", "pyarrow.parquet")
_PERCENT = re.compile(r"(\d+)%[|)]")
_STEP = re.compile(r"step (\d+)/(\d+)")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its log and of what is remembered of it.
        title: what it does, for people.
        words: the command: `datacomp-flyt ...`, or `python -m MODULE ...`.
    """

    name: str
    title: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """As typed."""
        return shlex.join(self.words)


def run_steps(steps: Iterable[Step], folder: Path, quiet: bool = False) -> dict[str, float]:
    """Run in `folder` what has not been run there before, and say so.

    Args:
        steps: in order.
        folder: their working directory; logs go to `logs/`.
        quiet: print nothing.

    Returns:
        Seconds that each step took when it was run.

    Raises:
        InputError: a step failed, with the end of what it said; or `folder` is of other steps.
    """
    (folder / "done").mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    seconds, before = {}, hashlib.sha256()
    for number, step in enumerate(steps, 1):
        before.update(f"{step.command}\n".encode())
        key, done = before.hexdigest(), folder / "done" / f"{step.name}.json"
        if not quiet:
            print(f"\n=== {number}. {step.title}\n$ {step.command}", flush=True)
        remembered = _remembered(done)
        if remembered and remembered["key"] != key:
            raise InputError(
                f"{folder} holds step {step.name} as another command, or one before it, made it: "
                "remove the folder, or name another"
            )
        if remembered:
            seconds[step.name] = float(remembered["seconds"])
            if not quiet:
                print("  done before")
            continue
        began = time.perf_counter()
        _run(step, folder, quiet)
        seconds[step.name] = time.perf_counter() - began
        with atomic_write(done) as file:
            file.write(json.dumps({"key": key, "seconds": seconds[step.name]}).encode())
    return seconds


def _remembered(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        return {}


def _run(step: Step, folder: Path, quiet: bool) -> None:
    log = folder / "logs" / f"{step.name}.log"
    log.write_bytes(b"")
    # One process has imported torch, which takes seconds, and each step is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(target=_work, args=(step.words, str(folder), str(log)))
    process.start()
    try:
        _watch(process, log, step.name, quiet)
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
    if process.exitcode:
        said = log.read_text(errors="replace").strip().split("\n")
        raise InputError(
            f"step {step.name} ended with exit code {process.exitcode} ({said[-1][-500:]}); "
            f"all that it said is in {log}"
        )


def _watch(process: BaseProcess, log: Path, name: str, quiet: bool) -> None:
    """A bar that follows the step's own progress, as its log tells it."""
    form = "  {desc} {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=100, desc=name, bar_format=form, disable=quiet, leave=True) as bar:
        while process.is_alive():
            process.join(0.5)
            bar.n = max([bar.n, *_progress(log)])
            bar.refresh()
        bar.n = 100 if process.exitcode == 0 else bar.n
        bar.refresh()


def _progress(log: Path) -> Iterator[int]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        end = file.read().decode(errors="replace")
    yield from (int(percent) for percent in _PERCENT.findall(end)[-1:])
    yield from (100 * int(step) // int(last) for step, last in _STEP.findall(end)[-1:])


def _work(words: tuple[str, ...], folder: str, log: str) -> None:
    """In a process of its own: the command, as `python -m` would run it."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(None, force=True)  # the command is to choose for itself
    os.chdir(folder)
    if words[0] == "datacomp-flyt":
        module, arguments = "datacomp_flyt.cli", words[1:]
    else:  # python -m MODULE
        module, arguments = words[2], words[3:]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()  # before the traceback, whose last line is told of a failed step


def _end_with_parent() -> None:
    """A tour that is killed outright leaves nothing that goes on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
