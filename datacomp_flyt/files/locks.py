"""Locks outputs, so that a second run that writes them is refused.

The kernel releases a lock when its process ends in any way, so a killed run blocks nobody; a mere
lock file would remain. NFS and, mounted with `flock`, Lustre keep locks between machines. If a
filesystem supports no locks, the run goes on with a warning.

The `filelock` package is no substitute: its lock does not name the process that holds it and leaves
its file behind, and version 3.8.0, which DataComp pins, follows symbolic links, truncates their
targets, and lets a forked child keep the lock of its parent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.streams import say

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows
    _LOCKS = False

_HELD: set[int] = set()  # descriptors of the lock files that this process holds
_ATTEMPTS = 100  # one fails if another run removes its lock file at that moment
_HOLDER = re.compile(r"process \d+ on .*\n?")


@dataclass
class _LockFile:
    """An open lock file.

    Attributes:
        handle: its file descriptor.
        writable: whether it is open for writing. In a shared folder, another user's file can only
            be read.
        ours: whether this program made it, so that it may be written and removed. Other programs
            have files of this name.
    """

    handle: int
    writable: bool
    ours: bool


@contextlib.contextmanager
def lock_outputs(*outputs: Path | str) -> Iterator[None]:
    """Keep other runs from writing the same outputs while the block runs.

    Args:
        outputs: folders, or files whose folders exist. Links are resolved.

    Raises:
        InputError: another run writes an output, its folder cannot be written, or the lock file is
            a file of another program.
    """
    with contextlib.ExitStack() as stack:
        for output in map(Path, outputs):
            stack.enter_context(_lock(output))
        yield


def try_lock(handle: int) -> bool | None:
    """Lock an open file; False if another process holds the lock, None if locking fails."""
    if not _LOCKS:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[None]:
    if not _LOCKS:
        _warn(output, "Windows")
        yield
        return
    real = Path(os.path.realpath(output))
    # hidden, since the folder may be read as one of tables meanwhile
    path = real / ".lock" if real.is_dir() else real.with_name(f".{real.name}.lock")
    lock = _take(path, output)
    _HELD.add(lock.handle)
    try:
        yield
    finally:
        if lock.handle in _HELD:  # not in a forked child, where `_release_in_child` has closed it
            _HELD.remove(lock.handle)
            if lock.ours:
                with contextlib.suppress(OSError):
                    path.unlink()  # before the release, so that the next run makes a new file
            os.close(lock.handle)


def _take(path: Path, output: Path) -> _LockFile:
    """Open the lock file of an output and lock it."""
    made = False
    for _ in range(_ATTEMPTS):
        lock = _open(path, output, made)
        made = lock.ours
        try:
            fcntl.flock(lock.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _content(lock.handle).strip()
            os.close(lock.handle)
            raise InputError(
                f"{output} is being written by another run ({holder or 'which just began'}): wait "
                "until that has ended, or name another place; if that process is gone, as after "
                f"its machine lost power, remove {path}"
            ) from None
        except OSError as error:
            if lock.writable:
                _warn(output, error.strerror)
                return lock
            os.close(lock.handle)  # NFS locks only files open for writing
            raise _not_ours(path) from None
        if not _is_same(lock.handle, path):  # another run removed it as it ended
            os.close(lock.handle)
        elif lock.writable:
            if lock.ours:
                with contextlib.suppress(OSError):  # the text only serves a later message
                    os.ftruncate(lock.handle, 0)
                    line = f"process {os.getpid()} on {socket.gethostname()}\n"
                    os.pwrite(lock.handle, line.encode(), 0)
            return lock
        else:  # left by a killed run of another user
            try:
                if not lock.ours:
                    raise _not_ours(path)
                path.unlink()
            except OSError:
                raise _not_ours(path) from None
            finally:
                os.close(lock.handle)
    _warn(output, f"its lock file changed at each of {_ATTEMPTS} attempts")
    return _open(path, output, made)


def _open(path: Path, output: Path, made: bool) -> _LockFile:
    """Open or create the lock file of an output.

    Args:
        made: whether this process has created it before.

    Raises:
        InputError: the folder cannot be written, or the file is no lock of this program.
    """
    shared = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # so that opening a pipe does not block
    handle, error = -1, OSError()
    for flags in (os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR, os.O_RDONLY) * 3:
        try:
            handle = os.open(path, flags | shared, 0o666)
        except FileExistsError:
            continue
        except OSError as failure:
            error = failure
            if error.errno == errno.ELOOP:
                raise _of_another_program(path, output, "a link") from None
            continue
        writable, made = flags != os.O_RDONLY, made or bool(flags & os.O_CREAT)
        break
    else:  # repeated, since another run may create and remove the file meanwhile
        raise InputError(f"{output} cannot be written ({error.strerror}): choose another place")
    content = _content(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if content is None or (content and not _HOLDER.fullmatch(content)):
        os.close(handle)
        raise _of_another_program(path, output, "no lock of this program")
    return _LockFile(handle, writable, made or bool(content))


def _content(handle: int) -> str:
    with contextlib.suppress(OSError):
        return os.pread(handle, 400, 0).decode(errors="replace")
    return ""


def _of_another_program(path: Path, output: Path, kind: str) -> InputError:
    return InputError(
        f"{output} wants {path} as its lock file, and that is {kind}: move it elsewhere, or name "
        "another place"
    )


def _not_ours(path: Path) -> InputError:
    return InputError(
        f"{path} belongs to another user: if no run is writing there, ask that user to remove it"
    )


def _warn(output: Path, reason: str | None) -> None:
    say(
        f"{output}: this filesystem keeps no locks ({reason}): see to it that no other run writes "
        "there",
        error=True,
    )


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _release_in_child() -> None:
    """Close the lock files in a forked child, such as a data loader's, which may outlive us."""
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


if _LOCKS:
    os.register_at_fork(after_in_child=_release_in_child)
