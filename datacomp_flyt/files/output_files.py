"""Checks output paths before any work, and writes output files atomically.

A temporary file is called `.NAME.<16 hexadecimal digits>.datacomp_flyt.tmp`, a name that no other
program uses, and is locked while it is written. Only unlocked files of such names are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import try_lock
from datacomp_flyt.files.open_file import open_local

_SUFFIX = ".datacomp_flyt.tmp"
_LONGEST = 100  # bytes of a NAME that a temporary name repeats; some filesystems allow 143 in all
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not on Windows


def check_save_path(path: str | Path, flag: str) -> Path:
    """Check that a local file can be written at a path, make its folder, and return the path.

    Raises:
        InputError: it is a cloud path, a folder, a device or a link that leads to no file, or it
            cannot be written.
    """
    if "://" in str(path):
        raise InputError(f"{flag} {path} is a cloud path: save to a local file and copy it")
    if str(path).endswith(("/", os.sep)):
        raise InputError(f"{flag} {path} is a folder: name the file to write")
    path = Path(path)
    try:
        target, existing = _target(path)
    except InputError as error:
        raise InputError(f"{flag} {error}") from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path}: its folder cannot be made ({error.strerror})") from None
    try:
        tempfile.TemporaryFile(dir=target.parent, prefix=".").close()
    except OSError as error:
        raise InputError(
            f"{flag} {path} cannot be written ({error.strerror}): choose another place"
        ) from None
    if existing and not (os.access(target, os.W_OK) and _may_replace(target.parent, existing)):
        raise InputError(f"{flag} {path} is write-protected: choose another place")
    return path


def check_notes_path(path: Path, *begins: bytes) -> Path:
    """Check and return the path of the notes, from which a command resumes after a kill.

    Args:
        path: the path of the notes, which may exist.
        begins: the allowed first bytes.

    Raises:
        InputError: the path cannot be written, is a link, or is a file of another program.
    """
    check_save_path(path, "the notes")
    if path.is_symlink():
        raise InputError(f"the notes {path} would be written through a link: move it away")
    with contextlib.suppress(FileNotFoundError), open_local(str(path)) as file:
        head = file.read(1 << 10)
        # the notes of a killed run may be empty, or end within the first bytes
        if not any(head.startswith(begin) or begin.startswith(head) for begin in begins):
            raise InputError(f"{path} holds no notes of this command: move it away")
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path`, synced, if the block ends without an error.

    If `path` is a link, the file that it leads to is replaced. The new file has the permissions of
    the one that it replaces, and its owner if the process may set it.

    Raises:
        InputError: the disk is full, or the path cannot be written.
    """
    name = None
    try:
        target, replaced = _target(path)
        handle, name = create_temporary(target, 0o600 if replaced else 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replaced:
            _copy_rights(replaced, name)
        os.replace(name, target)
        name = None
    except Exception as error:
        # torch.save raises the error of closing its file; the failed write is its __context__
        first = error if isinstance(error, OSError | InputError) else error.__context__
        if not isinstance(first, OSError):
            raise
        raise InputError(f"{path} cannot be written ({first.strerror or first})") from None
    finally:
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)


def create_temporary(path: Path, mode: int = 0o666) -> tuple[int, str]:
    """Make a temporary file beside `path`; return its descriptor and path.

    Raises:
        OSError: the file cannot be made.
    """
    name = path.with_name(f".{_stem(path)}.{secrets.token_hex(8)}{_SUFFIX}")
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY | _NOFOLLOW, mode)
    try_lock(handle)
    return handle, str(name)


def remove_unfinished(path: Path) -> None:
    """Remove temporary files that killed runs left.

    They are those of one output file, or, if the path is a folder, of all files in it.
    """
    if path.is_dir():
        folder, stem = path, ".+"
    else:
        path = Path(os.path.realpath(path))
        folder, stem = path.parent, re.escape(_stem(path))
    pattern = re.compile(rf"\.{stem}\.[0-9a-f]{{16}}{re.escape(_SUFFIX)}", re.DOTALL)
    for left in list(folder.glob(f".*{_SUFFIX}")):
        if pattern.fullmatch(left.name):
            _remove_unless_written(left)


def _remove_unless_written(path: Path) -> None:
    """Remove a temporary file, unless a process has it locked, or locks do not work here."""
    for access in (os.O_RDWR, os.O_RDONLY):  # NFS locks only files open for writing
        with contextlib.suppress(OSError):
            handle = os.open(path, access | _NOFOLLOW)
            try:
                if stat.S_ISREG(os.fstat(handle).st_mode) and try_lock(handle):
                    path.unlink()
            finally:
                os.close(handle)
            return


def _stem(path: Path) -> str:
    """Return the part of a file's name that its temporary name repeats."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()[:32]


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return the file that an output path leads to, and its state if it exists.

    Raises:
        InputError: the target is no regular file, or its state cannot be read.
    """
    target = Path(os.path.realpath(path))
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise InputError(
                f"{path} is a link to {target}, which is not there: remove the link, or name the "
                "file itself"
            ) from None
        return target, None
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose another place"
        ) from None
    if stat.S_ISDIR(state.st_mode):
        raise InputError(f"{path} is a folder: name the file to write")
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"{path} is a device, a pipe or a socket: name a file to write")
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(state, os.fstat(stream)):
                raise InputError(f"{path} is where this command prints: name another file to write")
    return target, state


def _may_replace(folder: Path, file_state: os.stat_result) -> bool:
    """Return whether the sticky bit of a folder lets this process replace a file in it."""
    folder_state = os.stat(folder)
    owners = (0, file_state.st_uid, folder_state.st_uid)
    return (
        not folder_state.st_mode & stat.S_ISVTX
        or not hasattr(os, "geteuid")
        or os.geteuid() in owners
    )


def _copy_rights(replaced: os.stat_result, name: str) -> None:
    """Give a file the owner, the group and the permissions of the file that it replaces."""
    for owner in ((-1, replaced.st_gid), (replaced.st_uid, -1)):
        with contextlib.suppress(OSError, AttributeError):  # only root may set any; Windows
            os.chown(name, *owner)
    with contextlib.suppress(OSError):
        os.chmod(name, stat.S_IMODE(replaced.st_mode))
