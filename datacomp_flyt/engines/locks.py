"""One run at a time writes an output: the second is refused.

The kernel gives a lock back when its process ends, however it ends, so what a killed run leaves
blocks nobody; a file that merely says "taken" would. NFS and, mounted with `flock`, Lustre keep
locks between machines. Where a filesystem keeps none the run goes on, and says so.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.streams import say

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows
    _LOCKS = False

_HELD: set[int] = set()
_TRIES = 100  # runs that end just as this one begins


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
    if not _LOCKS:
        _warn(place, "Windows")
        yield
        return
    # not of the place's kind: its folder may be read as one of tables meanwhile
    path = place / ".lock" if place.is_dir() else place.with_name(f".{place.name}.lock")
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
    for _ in range(_TRIES):
        handle, writable = _open(path, place)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise InputError(
                f"{place} is being written by another run ({holder or 'which just began'}): wait "
                "until that has ended, or name another place; if that process is gone, as after "
                f"its machine lost power, remove {path}"
            ) from None
        except OSError as error:
            if writable:
                _warn(place, error.strerror)
                return handle
            os.close(handle)  # NFS wants to write what it locks
            raise _of_somebody_else(path) from None
        if not _is_same(handle, path):  # of a run that ended in between
            os.close(handle)
        elif writable:
            with contextlib.suppress(OSError):  # only told to the next one
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return handle
        else:  # of a killed run of somebody else
            try:
                path.unlink()
            except OSError:
                raise _of_somebody_else(path) from None
            finally:
                os.close(handle)
    _warn(place, "a file is another one each time")
    return _open(path, place)[0]


def _open(path: Path, place: Path) -> tuple[int, bool]:
    """The lock file, and whether it can be written: others leave theirs where a group writes."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), True
    except OSError as error:
        if isinstance(error, PermissionError):
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
        raise InputError(
            f"{place} cannot be written ({error.strerror}): choose another place"
        ) from None


def _of_somebody_else(path: Path) -> InputError:
    return InputError(f"{path} is of somebody else: have it removed if no run goes on there")


def _warn(place: Path, why: str | None) -> None:
    say(
        f"{place}: this filesystem keeps no locks ({why}): see to it that no other run writes "
        "there",
        error=True,
    )


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


if _LOCKS:
    os.register_at_fork(after_in_child=_let_go)
