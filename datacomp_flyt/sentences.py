"""Turns errors that a user can act on into sentences. Importing this module is cheap."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback
from typing import Any

from datacomp_flyt.errors import InputError, first_line, lacks_memory
from datacomp_flyt.installation import missing_package

_MACHINE_ERRORS = (
    *(errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENOSPC, errno.EPERM, errno.EROFS, errno.ESTALE),
)  # the file's name and the system's text suffice for these
_MEMORY_FLAGS = (
    *("num_workers", "batch_size", "upstream_batch_size", "downstream_batch_size"),
    *("info_nce_batch", "buffer_rows", "max_rows", "sampling_batch_size"),
)


def sentence_of(error: BaseException, flags: dict[str, Any]) -> str | None:
    """Return the sentence for an error that a user can act on; None for an internal error.

    Args:
        error: the error that ended a command.
        flags: the flags of the command by name.
    """
    if lacks_memory(error):
        reason = str(error) if isinstance(error, InputError) else first_line(error)
        fault = "there is too little memory"
        if "DataLoader worker" in reason and "killed" in reason:
            fault = "a loader process was killed, often for want of memory"
        return f"{fault} ({reason.rstrip('. ')}): {_way_out_of_memory(flags)}"
    if isinstance(error, InputError):
        return str(error)
    text = first_line(error)
    if package := _failed_import(error):
        if not isinstance(error, ImportError) or not error.name:
            error = ImportError(text, name=package)
        return str(missing_package(error, ""))
    if isinstance(error, OSError) and error.errno == errno.EMFILE and not error.filename:
        return "too many files are open: allow more, as by `ulimit -n 4096`"
    if isinstance(error, FileNotFoundError) and not _current_folder_exists():
        return "the current folder has been removed: change to one that exists"
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, OSError) and "AF_UNIX path" in text:
        return str(too_long_for_sockets(tempfile.gettempdir()))
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in text:
        return "no folder for temporary files can be written: name one with TMPDIR"
    if type(error).__name__.startswith("Dist") or "/gloo/" in text or "NCCL error" in text:
        return f"another rank ended, or cannot be reached ({text}): see the message of that rank"
    return None


def _failed_import(error: BaseException) -> str | None:
    """Return the package whose import raised the error; None if none did, or one of ours."""
    if isinstance(error, ImportError) and error.name:
        return None if _is_ours(error.name) else error.name
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__") or "__main__"
        if frame.f_code.co_name == "<module>" and name != "__main__" and not _is_ours(name):
            return str(name).partition(".")[0]
    return None


def _current_folder_exists() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("datacomp_flyt", "baselines_plugin")


def _way_out_of_memory(flags: dict[str, Any]) -> str:
    """List the flags that would save memory."""
    flags = {**flags}
    # None stands for the default: as many workers as cores, or very many rows
    for name, default in (("num_workers", os.cpu_count()), ("max_rows", 2)):
        if name in flags and flags[name] is None:
            flags[name] = default
    smaller = [f"--{name}" for name in _MEMORY_FLAGS if (flags.get(name) or 0) > 1]
    ways = ["free some"]
    if smaller:
        ways.append(f"give a smaller {' or '.join(smaller)}")
    if "work_dir" in flags and flags["work_dir"] is None:
        ways.append("add --work_dir FOLDER, which sorts the pool in files")
    return ", or ".join(ways)


def too_long_for_sockets(folder: str) -> InputError:
    """Make the error for the case that each folder for temporary files has too long a path."""
    return InputError(
        f"the folder of temporary files, {folder}, has too long a path for a socket: "
        "name a shorter one with TMPDIR"
    )
