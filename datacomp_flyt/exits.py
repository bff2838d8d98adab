"""Turns errors and signals that end a command into a sentence and an exit code (docs/faults.md).

A command returns 0 if it is done, and 1 for an answer such as `check`: not valid. This module makes
all other exit codes. Importing it is cheap, so that every command can start with it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from datacomp_flyt.errors import printable
from datacomp_flyt.sentences import sentence_of, too_long_for_sockets
from datacomp_flyt.streams import protected, say

WRONG_INPUT = 2
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
_SIGNALS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    **({signal.SIGHUP: "SIGHUP"} if hasattr(signal, "SIGHUP") else {}),
}
_WAKE = getattr(signal, "SIGURG", None)  # the signal that interrupts waits of the main thread
_SAME_SIGNAL = 1.0  # seconds in which a repeated signal counts as the same request
_MAX_SOCKET_PATH = 100  # bytes; Linux allows 107 and macOS 103
_SOCKET_NAME = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # the name that multiprocessing adds
_NUMPY = 1 << 28  # bytes of address space that NumPy and its BLAS need
_running: list[Running] = []  # the command of this process, while it runs


class Running:
    """A command that is running.

    Attributes:
        name: the command, as users type it.
        flags: its flags by name, once they are parsed. Errors use them for advice on memory.
        signum: the signal that stopped it, or None.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.flags: dict[str, Any] = {}
        self.signum: int | None = None
        self._since = 0.0

    def stop(self, signum: int, _: FrameType | None) -> None:
        """Handle a signal: the first raises KeyboardInterrupt, a later one ends the process."""
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            raise KeyboardInterrupt
        if now - self._since > _SAME_SIGNAL:
            with contextlib.suppress(OSError):  # `say` may be running
                os.write(2, f"{self.name}: stopped at once\n".encode(errors="replace"))
            os._exit(128 + self.signum)


class Parser(argparse.ArgumentParser):
    """The parser of every program of this repository.

    An error is one line, without the usage, which `--help` prints. Its words are escaped, since a
    shell may expand file names. Modules that `python -m` runs give their docstring as
    `description`, and only its first line is shown; `prog` is `python -m MODULE`, as in
    Python 3.14.
    """

    def __init__(
        self, prog: str | None = None, description: str | None = None, **options: Any
    ) -> None:
        module = getattr(sys.modules["__main__"], "__spec__", None)
        if prog is None and module is not None:
            prog = f"python -m {module.name.removesuffix('.__main__')}"
        first_line = (description or "").partition("\n")[0]
        super().__init__(prog, description=first_line, **options)

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with code 2."""
        self.exit(WRONG_INPUT, f"{self.prog}: error: {printable(message)}\n")


@contextlib.contextmanager
def running(name: str) -> Iterator[Running]:
    """Run a command in the block. An error becomes one line on stderr and an exit code.

    A nested block does nothing: the outer one handles errors.

    Args:
        name: the command, as users type it.

    Raises:
        SystemExit: the block raised an exception.
    """
    if _running:
        yield _running[0]
        return
    command = Running(name)
    with protected(name), _signals(command):
        _running.append(command)
        try:
            _check_memory()
            _shorten_socket_paths()
            yield command
        except SystemExit:
            if command.signum is None:
                raise
            raise SystemExit(_ended_by_signal(command)) from None
        except BaseException as error:
            sys.stdout.flush()
            raise SystemExit(_exit_code(command, error)) from None
        finally:
            _running.clear()


def run_main(module: str) -> NoReturn:
    """Import a module and run its `main`, for `python -m MODULE`.

    The module calls this before its other imports, so that their errors are handled as well.

    Raises:
        SystemExit: always; see `running`.
    """
    with running(module):
        sys.exit(importlib.import_module(module).main())


def _exit_code(command: Running, error: BaseException) -> int:
    """Print the error on stderr and return the exit code."""
    if command.signum is not None or isinstance(error, KeyboardInterrupt):
        return _ended_by_signal(command)
    sentence = sentence_of(error, command.flags)
    if sentence is None:
        # the error itself comes last, since people quote the end of a log
        say(f"{command.name}: an internal error: please report these lines", error=True)
        say(*"".join(traceback.format_exception(error)).rstrip().split("\n"), error=True)
        return INTERNAL_ERROR
    say(f"{command.name}: error: {sentence}", error=True)
    return WRONG_INPUT


def _ended_by_signal(command: Running) -> int:
    signum = command.signum or signal.SIGINT
    say(
        f"{command.name}: stopped by {_SIGNALS[signal.Signals(signum)]}: no file is half-written; "
        "the same command goes on or begins anew",
        error=True,
    )
    return 128 + signum


@contextlib.contextmanager
def _signals(command: Running) -> Iterator[None]:
    """Handle signals that are neither handled nor ignored already (`nohup` ignores SIGHUP)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with keep_signals(), _woken(command):
        for signum in _SIGNALS:
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(signum, command.stop)
        yield


@contextlib.contextmanager
def _woken(command: Running) -> Iterator[None]:
    """Wake the main thread when a signal comes.

    The kernel may deliver a signal to a thread of a library. Python's handler would then run only
    after a wait of the main thread has ended; `_WAKE` interrupts this wait.
    """
    if _WAKE is None:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    main = threading.get_ident()

    def watch() -> None:
        while signums := os.read(reader, 1):
            if signums[0] in _SIGNALS:
                end = time.monotonic() + _SAME_SIGNAL
                while command.signum is None and time.monotonic() < end:
                    signal.pthread_kill(main, _WAKE)
                    time.sleep(0.05)
        os.close(reader)

    handler, before = signal.signal(_WAKE, _nothing), signal.set_wakeup_fd(writer)
    with contextlib.suppress(RuntimeError):  # not enough memory for a thread
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        signal.signal(_WAKE, handler)


@contextlib.contextmanager
def keep_signals() -> Iterator[None]:
    """Restore the signal handlers at the end of the block, since Ray replaces them."""
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            for signum, handler in before.items():
                if signal.getsignal(signum) != handler:
                    signal.signal(signum, handler)


def _in_forked_child() -> None:
    """Make a forked child, such as a data loader's worker, end silently; its parent reports."""
    if _running:
        _running.clear()
        signal.set_wakeup_fd(-1)
    for signum in _SIGNALS:
        if isinstance(getattr(signal.getsignal(signum), "__self__", None), Running):
            # programs that the child executes would inherit SIG_IGN
            signal.signal(signum, _nothing if signum == signal.SIGINT else signal.SIG_DFL)


def _nothing(*_: object) -> None:
    pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def socket_folder(longest_name: int) -> str:
    """Return a folder for temporary files that leaves room for the path of a socket.

    Args:
        longest_name: the number of characters that are added to the folder's path.

    Raises:
        InputError: no folder has a path that is short enough.
    """
    folder = tempfile.gettempdir()
    for short in (folder, "/tmp", "/var/tmp", "/dev/shm"):
        fits = len(os.fsencode(short)) + longest_name <= _MAX_SOCKET_PATH
        if fits and os.access(short, os.W_OK | os.X_OK):
            return short
    raise too_long_for_sockets(folder)


def _check_memory() -> None:
    """Raise if a limit (`ulimit -v`) leaves too little memory to load NumPy.

    OpenBLAS would end the process itself with exit code 1, which `check` uses for "not valid".
    """
    if "numpy" not in sys.modules:
        with mmap.mmap(-1, _NUMPY):
            pass


def _shorten_socket_paths() -> None:
    """Move multiprocessing's sockets to another folder if the path of TMPDIR is too long.

    Otherwise the workers of a data loader would fail silently and their parent would wait forever.
    """
    if len(os.environ.get("TMPDIR", "")) + _SOCKET_NAME <= _MAX_SOCKET_PATH:
        return
    import multiprocessing.util

    before = tempfile.gettempdir()
    try:
        tempfile.tempdir = socket_folder(_SOCKET_NAME)
        multiprocessing.util.get_temp_dir()  # multiprocessing keeps this folder
    finally:
        tempfile.tempdir = before
