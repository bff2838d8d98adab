"""Calls readers in another process, since they may hang, crash or use too much memory."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.hostile.reader import GROWTH

SECONDS = 5.0  # limit of the processor seconds of a call
LONGEST = 20  # processor seconds after which a call is ended
PATIENCE = 120.0  # wall-clock seconds after which a call is ended, on a busy machine
START = 300.0  # wall-clock limit of the first call of a process, which imports modules
_LONGEST = 2000  # limit of the characters of a message
_ROOM = 6 << 30  # bytes of address space that a call may add to that of the imports


class Outcome(NamedTuple):
    """The outcome of a call: `kind` is answer, refused, wrong, error, hang or crash."""

    kind: str
    text: str
    digest: str = ""
    seconds: float = 0.0
    growth: int = 0
    memory: int = GROWTH

    @property
    def fault(self) -> str | None:
        if self.kind in ("answer", "refused"):
            if self.seconds > SECONDS:
                return f"slow: {self.seconds:.1f} s"
            if self.growth > self.memory:
                return f"memory: {self.growth / 2**30:.1f} GB more"
            return None
        return f"{self.kind}: {self.text}"


def digest(value: Any) -> str:
    """Hash nested lists of arrays, text and numbers."""
    state = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            if part.dtype.kind == "O":
                add(part.tolist())
            else:
                state.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, (list, tuple)):
            state.update(f"{len(part)}(".encode())
            for each in part:
                add(each)
        else:
            state.update(repr(part).encode(errors="replace"))

    add(value)
    return state.hexdigest()


class Worker:
    """Runs readers one after the other; it starts a new process if a reader does not return."""

    def __init__(
        self,
        readers: str = "tests.hostile.readers",
        seconds: float = LONGEST,
        patience: float = PATIENCE,
    ) -> None:
        """
        Args:
            readers: the module that holds `READERS`.
            seconds, patience: the limits of a call in processor time and in wall-clock time.
        """
        self._readers, self._seconds, self._patience = readers, seconds, patience
        self._process: Any = None
        self._pipe: Any = None
        self._stack: Any = None  # the file to which a process that hangs writes its stack
        self._warm: set[str] = set()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._stack.close()
        self._process, self._warm = None, set()

    def run(self, reader: str, folder: Path) -> Outcome:
        """Call a reader; its modules must be loaded by `warm`."""
        outcome = self._ask(reader, folder, self._patience)
        if (
            outcome.growth > GROWTH
        ):  # memory that is not freed would hide the growth of the next call
            self.stop()
        return outcome

    def warm(self, reader: str, folder: Path) -> Outcome | None:
        """Call a reader with a valid folder and time for imports; return None if it is warm."""
        if reader in self._warm and self._process is not None:
            return None
        outcome = self._ask(reader, folder, START)
        self._warm.add(reader)
        return outcome._replace(seconds=0.0, growth=0)

    def _ask(self, reader: str, folder: Path, patience: float) -> Outcome:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._stack = tempfile.NamedTemporaryFile()  # noqa: SIM115
            arguments = (theirs, self._stack.name, self._readers, self._seconds)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((reader, str(folder), patience))
            if self._pipe.poll(patience):
                answer: Outcome = self._pipe.recv()
                return answer
            stack = Path(self._stack.name).read_text()
            outcome = Outcome("hang", f"no answer in {patience:.0f} s of the clock: {stack}")
        except (EOFError, OSError):
            self._process.join(10)  # its shutdown may hang as well
            code = self._process.exitcode
            outcome = Outcome("crash", f"exit code {code}")
            if code == -signal.SIGPROF:
                outcome = Outcome("hang", f"no answer in {self._seconds:g} s of the processor")
        self.stop()
        return outcome


def _serve(pipe: Connection, stack: str, module: str, seconds: float) -> None:
    readers = importlib.import_module(module).READERS
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with contextlib.suppress(EOFError), open(stack, "w") as file:
        while True:
            name, folder, patience = pipe.recv()
            if patience == START:  # with imports
                resource.setrlimit(resource.RLIMIT_AS, (_most(), _most()))
            faulthandler.dump_traceback_later(0.9 * patience, file=file)
            signal.setitimer(signal.ITIMER_PROF, patience if patience == START else seconds)
            outcome = _call(readers[name], Path(folder))
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            if patience == START:
                size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 if _LINUX else 0
                if size:
                    resource.setrlimit(resource.RLIMIT_AS, (min(size + _ROOM, _most()), _most()))
            pipe.send(outcome)


_LINUX = sys.platform == "linux"


def _most() -> int:
    return resource.getrlimit(resource.RLIMIT_AS)[1]


def _call(reader: Any, folder: Path) -> Outcome:
    from datacomp_flyt.errors import InputError
    from datacomp_flyt.files.torch_pickle import TorchFileError
    from datacomp_flyt.tars.samples import Skip, UnreadableShard

    before, began = _peak(reset=True), time.process_time()
    kind, text, hashed = "answer", "", ""
    try:
        result = reader.call(folder)
        complaint = reader.check(result)
        kind, text, hashed = (
            ("wrong", complaint, "") if complaint else ("answer", "", digest(result))
        )
    except (InputError, Skip, UnreadableShard, TorchFileError) as error:
        kind, text = "refused", str(error)
        if fault := _fault(error, folder):
            kind, text = "wrong", f"{fault}: {text[:300]!r}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "datacomp_flyt/" in frame.filename] or frames
        line = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        kind, text = "error", f"{type(error).__name__} at {line}: {str(error)[:200]!r}"
    seconds, growth = time.process_time() - began, max(_peak() - before, 0)
    return Outcome(kind, text, hashed, seconds, growth, reader.memory)


def _fault(error: Exception, folder: Path) -> str | None:
    """Return a fault of a refusal, or None. Only an InputError must name the file itself."""
    from datacomp_flyt.errors import InputError

    message = str(error)
    if not message.isprintable():
        return "a message that is not one line of plain text"
    if len(message) > _LONGEST:
        return f"a message of {len(message)} characters"
    named = not isinstance(error, InputError) or str(folder) in message
    return None if named else "a message that does not name the file"


def _peak(reset: bool = False) -> int:
    """Return the peak memory in bytes, since the last reset if the system supports that."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1024 if _LINUX else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
