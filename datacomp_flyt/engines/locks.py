"""One run at a time writes an output: the second is refused.

The kernel gives a lock back when its process ends, however it ends, so what a killed run leaves
blocks nobody; a file that merely says "taken" would. NFS and, mounted with `flock`, Lustre keep
locks between machines. Where a filesystem keeps none the run goes on, and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from datacomp_flyt.errors import InputError

_HELD: set[int] = set()


@contextlib.contextmanager
def one_run(*places: Path | str) -> Iterator[None]:
    """Keep other runs from writing the same while the block runs.

    Args:
        places: folders, or files whose folders are there.

    Raises:
        InputError: another run writes one of them, or its folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for place in map(Path, places):
            stack.enter_context(_lock(place))
        yield


@contextlib.contextmanager
def _lock(place: Path) -> Iterator[None]:
    path = place / ".lock" if place.is_dir() else place.with_name(f".lock.{place.name}")
    handle = _take(path, place)
    _HELD.add(handle)
    try:
        yield
    finally:
        if handle in _HELD:  # a forked child has let go
            _HELD.remove(handle)
            with contextlib.suppress(OSError):
                path.unlink()  # before it is given back: a run that comes now makes its own
            os.close(handle)


def _take(path: Path, place: Path) -> int:
    """The open lock file."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(
                f"{place} cannot be written ({error.strerror}): choose another place"
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise InputError(
                f"{place} is being written by another run ({holder or 'which just began'}): wait "
                "until that has ended, or name another place"
            ) from None
        except OSError as error:
            print(
                f"{place}: this filesystem keeps no locks ({error.strerror}): see to it that no "
                "other run writes there",
                file=sys.stderr,
            )
        if _is_same(handle, path):
            with contextlib.suppress(OSError):  # only told to the next one
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return handle
        os.close(handle)  # of a run that ended in between


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _let_go() -> None:
    """In a forked child, such as a data loader's, which may live longer than its parent."""
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)
