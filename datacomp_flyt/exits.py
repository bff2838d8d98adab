"""Turns everything that ends a command into a sentence and an exit code (docs/faults.md).

Commands themselves return 0 (done) or 1 (an answer, such as `check`: not valid); this module makes
all other codes. Importing it is cheap, so that every command can start with it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
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

from datacomp_flyt.errors import InputError, first_line, lacks_memory, printable
from datacomp_flyt.streams import protected, say

WRONG_INPUT = 2
MISTAKE = 70  # EX_SOFTWARE of sysexits.h
_SIGNALS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    **({signal.SIGHUP: "SIGHUP"} if hasattr(signal, "SIGHUP") else {}),
}
_OF_THE_MACHINE = (
    *(errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC),
    *(errno.EPERM, errno.EROFS, errno.ESTALE),
)  # errors that the file's name and the system's text describe sufficiently
_WAKE = getattr(signal, "SIGURG", None)
_AT_ONCE = 1.0  # seconds in which a repeated signal counts as the same request
_LONGEST_SOCKET = 100  # bytes of a path; Linux allows 107 and macOS 103
_NAME_OF_SOCKET = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # added by multiprocessing
_FLAGS_OF_MEMORY = (
    *("num_workers", "batch_size", "upstream_batch_size", "downstream_batch_size"),
    *("info_nce_batch", "buffer_rows", "max_rows", "sampling_batch_size"),
)
_outer: list[Running] = []  # the command of this process, while it runs


class Running:
    """A command that is running.

    Attributes:
        flags: its flags by name, once they are parsed, for advice on saving memory.
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
            with contextlib.suppress(OSError):  # not `say`, which may be what was interrupted
                os.write(2, f"{self.name}: stopped at once\n".encode(errors="replace"))
            os._exit(128 + self.signum)


class Parser(argparse.ArgumentParser):
    """A parser that escapes the words in its messages, since a shell may expand file names."""

    def error(self, message: str) -> NoReturn:
        """Print the message, and end with exit code 2."""
        super().error(printable(message))


@contextlib.contextmanager
def running(name: str) -> Iterator[Running]:
    """Run a command in the block; any error becomes one line on stderr and an exit code.

    A nested block does nothing: the outer one handles everything.

    Args:
        name: the command, as users type it.

    Raises:
        SystemExit: the block raised any exception.
    """
    if _outer:
        yield _outer[0]
        return
    command = Running(name)
    with protected(name), _signals(command):
        _outer.append(command)
        try:
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


def _exit_code(command: Running, error: BaseException) -> int:
    """Print the error on stderr and return the exit code."""
    if command.signum is not None or isinstance(error, KeyboardInterrupt):
        return _ended_by_signal(command)
    sentence = _sentence(error, command.flags)
    if sentence is None:
        # the error itself comes last, since people quote the end of a log
        say(f"{command.name}: an internal error: please report these lines", error=True)
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


def _sentence(error: BaseException, flags: dict[str, Any]) -> str | None:
    """The sentence for an error that a user can act on; None for an internal error."""
    if lacks_memory(error):
        said = str(error) if isinstance(error, InputError) else first_line(error)
        return f"there is too little memory ({said}): {_way_out_of_memory(flags)}"
    if isinstance(error, InputError):
        return str(error)
    said = first_line(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not _is_ours(error.name):
        from datacomp_flyt.installation import missing_package

        return str(missing_package(error, ""))
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, OSError) and "AF_UNIX path" in said:
        return str(_too_long(tempfile.gettempdir()))
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in said:
        return "no folder for temporary files can be written: name one with TMPDIR"
    if type(error).__name__.startswith("Dist") or "/gloo/" in said or "NCCL error" in said:
        return f"another rank ended, or cannot be reached ({said}): see the message of that rank"
    return None


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("datacomp_flyt", "baselines_plugin")


def _way_out_of_memory(flags: dict[str, Any]) -> str:
    smaller = [f"--{name}" for name in _FLAGS_OF_MEMORY if (flags.get(name) or 0) > 1]
    ways = ["free some"]
    if smaller:
        ways.append(f"give a smaller {' or '.join(smaller)}")
    if "work_dir" in flags and flags["work_dir"] is None:
        ways.append("add --work_dir FOLDER, which sorts the pool in files")
    return ", or ".join(ways)


@contextlib.contextmanager
def _signals(command: Running) -> Iterator[None]:
    """Handle the signals that are neither handled nor ignored yet (`nohup` ignores SIGHUP)."""
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

    The kernel may deliver it to a thread of a library; Python's handler would then run only after
    the main thread's wait has ended. `_WAKE` interrupts the wait.
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
    """Make a forked child, such as a data loader's worker, end silently: its parent reports."""
    if _outer:
        _outer.clear()
        signal.set_wakeup_fd(-1)
    for signum in _SIGNALS:
        if isinstance(getattr(signal.getsignal(signum), "__self__", None), Running):
            # not SIG_IGN, which programs that the child executes would inherit
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
        fits = len(os.fsencode(short)) + longest_name <= _LONGEST_SOCKET
        if fits and os.access(short, os.W_OK | os.X_OK):
            return short
    raise _too_long(folder)


def _too_long(folder: str) -> InputError:
    return InputError(
        f"the folder of temporary files, {folder}, has too long a path for a socket: "
        "name a shorter one with TMPDIR"
    )


def _shorten_socket_paths() -> None:
    """Move multiprocessing's sockets elsewhere if the path of TMPDIR is too long.

    Otherwise a data loader's workers would fail silently, and their parent would wait forever.
    """
    if len(os.environ.get("TMPDIR", "")) + _NAME_OF_SOCKET <= _LONGEST_SOCKET:
        return
    import multiprocessing.util

    before = tempfile.gettempdir()
    try:
        tempfile.tempdir = socket_folder(_NAME_OF_SOCKET)
        multiprocessing.util.get_temp_dir()  # a process and its children ask for it once
    finally:
        tempfile.tempdir = before
