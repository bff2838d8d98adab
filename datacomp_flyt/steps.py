"""Long work as commands that a user would type, run one after the other.

That a step is done is remembered in `done/`, and it is not done again. A step that was killed is
given again, and goes on from where it was where its command can. Files of other commands would be
taken for its own, so a folder is for one list of steps.
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

from datacomp_flyt.distributed.torchrun_ranks import Ranks, alone
from datacomp_flyt.engines.processes import exit_text
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.progress import Progress
from datacomp_flyt.streams import say

_PRELOADED = ("torch", "torchvision", "open_clip", "webdataset", "pandas", "pyarrow.parquet")
_GRACE = 20.0  # seconds that a step has to remove its temporary files, or the kernel to end it
_PERCENT = re.compile(r"(\d+)%(?:[|)]| \()")  # in logs of tqdm, open_clip and `Progress`
_STEP = re.compile(r"step (\d+)/(\d+)")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its log and of what is remembered of it.
        title: what it does, for people.
        words: the command: `datacomp-flyt ...`, or `python -m MODULE ...`.
        together: under torchrun it is work for all ranks. How many is no part of what is
            remembered: a run may go on on another number of GPUs.
        aside: no later step reads what it makes, so with another command it is done again, where
            another step would be refused.
        again: it is done in every run: it takes no time, and what it makes may be of another list
            of steps that began alike, or of files that have changed.
    """

    name: str
    title: str
    words: tuple[str, ...]
    together: bool = False
    aside: bool = False
    again: bool = False

    @property
    def module(self) -> tuple[str, ...]:
        """The module to run and its arguments."""
        if self.words[0] == "datacomp-flyt":
            return ("datacomp_flyt.cli", *self.words[1:])
        return self.words[2:]  # python -m MODULE

    @property
    def command(self) -> str:
        """As typed."""
        return shlex.join(self.words)


def run_steps(
    steps: Iterable[Step],
    folder: Path,
    quiet: bool = False,
    cwd: Path | None = None,
    ranks: Ranks | None = None,
    made: Iterable[str] = (),
) -> dict[str, float]:
    """Run what has not been run before, and say so.

    Args:
        steps: in order.
        folder: what is done is remembered in `done/`, and logs go to `logs/`.
        quiet: print nothing.
        cwd: working directory of the commands; `folder` if None.
        ranks: under torchrun, rank 0's; the others `follow_steps`.
        made: patterns of the folders in `folder` that only the steps write: what killed ones left
            there is removed.

    Returns:
        Seconds that each step took when it was run.

    Raises:
        InputError: a step failed, with the end of what it said; or `folder` is of other steps.
    """
    (folder / "done").mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    for place in ("done", *made):
        for path in filter(Path.is_dir, list(folder.glob(place))):
            remove_unfinished(path)
    seconds, before = {}, hashlib.sha256()
    for number, step in enumerate(steps, 1):
        upto = before.copy()
        upto.update(f"{shlex.join(step.words)}\n".encode())
        key, done = upto.hexdigest(), folder / "done" / f"{step.name}.json"
        if not step.aside:
            before = upto
        if not quiet:
            say("", f"=== {number}. {step.title}", f"$ {step.command}")
        remembered = _remembered(done)
        if remembered and remembered["key"] != key and step.aside:
            remembered = {}
        if remembered and remembered["key"] != key:
            raise InputError(
                f"{folder} holds step {step.name} as another command, or one before it, made it: "
                "remove the folder, or name another"
            )
        if remembered and not step.again:
            seconds[step.name] = remembered["seconds"]
            if not quiet:
                say("  done before")
            continue
        began = time.perf_counter()
        together = ranks is not None and step.together
        environment = ranks.call(step.name) if ranks and together else alone(os.environ)
        _run(step, folder / "logs" / f"{step.name}.log", cwd or folder, quiet, environment)
        seconds[step.name] = time.perf_counter() - began
        with atomic_write(done) as file:
            file.write(json.dumps({"key": key, "seconds": seconds[step.name]}).encode())
    if ranks:
        ranks.dismiss()
    return seconds


def follow_steps(steps: Iterable[Step], folder: Path, cwd: Path, ranks: Ranks) -> None:
    """The part of ranks other than 0 in `run_steps` of the same steps, in the same folders.

    Raises:
        InputError: a step failed here.
    """
    named = {step.name: step for step in steps}
    for name, environment in ranks.calls():
        log = folder / "logs" / f"{name}.rank{ranks.rank}.log"
        _run(named[name], log, cwd, True, environment)


def _remembered(path: Path) -> dict[str, Any]:
    """Key and seconds of a step that was done; nothing where a note does not say both."""
    try:
        found = json.loads(path.read_text())
        key, seconds = str(found["key"]), float(found["seconds"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}
    return {"key": key, "seconds": seconds} if math.isfinite(seconds) else {}


def _run(step: Step, log: Path, cwd: Path, quiet: bool, environment: dict[str, str]) -> None:
    log.unlink(missing_ok=True)  # it may be a link to a file of another user
    log.touch()
    # One process has imported torch, which takes seconds, and each step is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(target=_work, args=(step, str(cwd), str(log), environment))
    process.start()
    try:
        _watch(process, log, step.name, quiet)
    finally:
        process.terminate()
        process.join(_GRACE)
        process.kill()
        process.join(_GRACE)
    if process.exitcode:
        said = log.read_text(errors="replace").strip().split("\n")[-1][-500:]
        if process.exitcode < 0:
            said = f"{exit_text(process.exitcode)}; {said}"
        raise InputError(
            f"step {step.name} ended with exit code {process.exitcode} ({said}); "
            f"all that it said is in {log}"
        )


def _watch(process: BaseProcess, log: Path, name: str, quiet: bool) -> None:
    """Show the step's progress, as read from its log."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
    bar = Progress(f"  {name}", 100, tenths=True, quiet=quiet, bar_format=form)
    try:
        while process.is_alive():
            process.join(0.5)
            bar.move_to(max([bar.done, *_progress(log)]))
        if process.exitcode == 0:
            bar.move_to(100)
    finally:
        bar.close(process.exitcode == 0)


def _progress(log: Path) -> Iterator[int]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        end = file.read().decode(errors="replace")
    yield from (int(percent) for percent in _PERCENT.findall(end)[-1:])
    yield from (100 * int(step) // int(last) for step, last in _STEP.findall(end)[-1:])


def _work(step: Step, cwd: str, log: str, environment: dict[str, str]) -> None:
    """In a process of its own: the command, as `python -m` would run it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the command is to choose for itself
    module, *arguments = step.module
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()  # before the traceback, whose last line is told of a failed step


def _end_with_parent() -> None:
    """A run that is killed outright leaves nothing that goes on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
