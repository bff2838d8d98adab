"""How every command ends: a sentence and an exit code, whatever ended it (docs/faults.md).

0 is done, 1 is an answer of the command itself (`check`: not valid), and both are the command's.
Here are the others. No import here takes time, so that commands can begin with it.
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
MISTAKE = 70  # EX_SOFTWARE of sysexits.h
_SIGNALS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    **({signal.SIGHUP: "SIGHUP"} if hasattr(signal, "SIGHUP") else {}),
}
_WAKE = getattr(signal, "SIGURG", None)
_AT_ONCE = 1.0  # seconds in which a signal that comes again is the same request
_LONGEST_SOCKET = 100  # bytes of a path; Linux allows 107 and macOS 103
_NAME_OF_SOCKET = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # that multiprocessing adds
_NUMPY = 1 << 28  # bytes of address space, with its BLAS
_outer: list[Running] = []  # the command of this process, while it runs


class Running:
    """A command that is running.

    Attributes:
        flags: its flags by name, once they are known; they say what takes less memory.
        signum: the signal that stopped it, or None.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.flags: dict[str, Any] = {}
        self.signum: int | None = None
        self._since = 0.0

    def stop(self, signum: int, _: FrameType | None) -> None:
        """Handle a signal: the first ends the command in good order, a later one at once."""
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            raise KeyboardInterrupt
        if now - self._since > _AT_ONCE:
            with contextlib.suppress(OSError):  # not `say`: it may have been interrupted itself
                os.write(2, f"{self.name}: stopped at once\n".encode(errors="replace"))
            os._exit(128 + self.signum)


class Parser(argparse.ArgumentParser):
    """A parser that names words as all else is printed: a shell may have put file names there."""

    def error(self, message: str) -> NoReturn:
        """Print the message, and end with exit code 2."""
        super().error(printable(message))


@contextlib.contextmanager
def running(name: str) -> Iterator[Running]:
    """Run a command in the block: whatever ends it becomes one line on stderr and an exit code.

    A block within another one leaves all to that.

    Args:
        name: of the command, as users type it.

    Raises:
        SystemExit: always where the block raises.
    """
    if _outer:
        yield _outer[0]
        return
    command = Running(name)
    with protected(name), _signals(command):
        _outer.append(command)
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
            _outer.clear()


def run_main(module: str) -> NoReturn:
    """Run a module's `main` for `python -m MODULE`, its imports as well.

    The module calls this before it imports what takes long or may be missing.

    Raises:
        SystemExit: always; see `running`.
    """
    with running(module):
        sys.exit(importlib.import_module(module).main())


def _exit_code(command: Running, error: BaseException) -> int:
    """The exit code for an error, which is told on stderr."""
    if command.signum is not None or isinstance(error, KeyboardInterrupt):
        return _ended_by_signal(command)
    sentence = sentence_of(error, command.flags)
    if sentence is None:
        # the line of the error comes last, where logs are quoted from
        say(f"{command.name}: a mistake in the program: please report these lines", error=True)
        say(*"".join(traceback.format_exception(error)).rstrip().split("\n"), error=True)
        return MISTAKE
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
    """Handle the signals that nobody else handles or ignores, as `nohup` does."""
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

    The kernel may give it to a thread of a library; Python's handler would run only when the main
    thread has ended its wait by itself. `_WAKE` interrupts that.
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
                end = time.monotonic() + _AT_ONCE
                while command.signum is None and time.monotonic() < end:
                    signal.pthread_kill(main, _WAKE)
                    time.sleep(0.05)
        os.close(reader)

    handler, before = signal.signal(_WAKE, _nothing), signal.set_wakeup_fd(writer)
    with contextlib.suppress(RuntimeError):  # no memory for a thread
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        signal.signal(_WAKE, handler)


@contextlib.contextmanager
def keep_signals() -> Iterator[None]:
    """Undo at the end what the block does to the handling of signals, as Ray does."""
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            for signum, handler in before.items():
                if signal.getsignal(signum) != handler:
                    signal.signal(signum, handler)


def _in_forked_child() -> None:
    """A forked child, such as a data loader's worker, is its parent's to end, without a word."""
    if _outer:
        _outer.clear()
        signal.set_wakeup_fd(-1)
    for signum in _SIGNALS:
        if isinstance(getattr(signal.getsignal(signum), "__self__", None), Running):
            # not SIG_IGN, which a program that is executed next would keep
            signal.signal(signum, _nothing if signum == signal.SIGINT else signal.SIG_DFL)


def _nothing(*_: object) -> None:
    pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def socket_folder(longest_name: int) -> str:
    """A folder for temporary files in which the path of a socket is not too long.

    Args:
        longest_name: characters that are added to it.

    Raises:
        InputError: there is none.
    """
    folder = tempfile.gettempdir()
    for short in (folder, "/tmp", "/var/tmp", "/dev/shm"):
        fits = len(os.fsencode(short)) + longest_name <= _LONGEST_SOCKET
        if fits and os.access(short, os.W_OK | os.X_OK):
            return short
    raise too_long_for_sockets(folder)


def _check_memory() -> None:
    """Raise where a limit (`ulimit -v`) leaves too little for NumPy to be loaded.

    OpenBLAS would end the process itself, with exit code 1: an answer of `check`.
    """
    if "numpy" not in sys.modules:
        with mmap.mmap(-1, _NUMPY):
            pass


def _shorten_socket_paths() -> None:
    """Let multiprocessing's sockets be elsewhere where the path of TMPDIR is too long.

    Workers of a data loader would not say so: whoever waits for them would wait for ever.
    """
    if len(os.environ.get("TMPDIR", "")) + _NAME_OF_SOCKET <= _LONGEST_SOCKET:
        return
    import multiprocessing.util

    before = tempfile.gettempdir()
    try:
        tempfile.tempdir = socket_folder(_NAME_OF_SOCKET)
        multiprocessing.util.get_temp_dir()  # asked for once by a process and all its children
    finally:
        tempfile.tempdir = before
