"""Sentences for errors that a user can act on. No import here takes time."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback
from typing import Any

from datacomp_flyt.errors import InputError, first_line, lacks_memory
from datacomp_flyt.installation import missing_package

_OF_THE_MACHINE = (
    *(errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENOSPC, errno.EPERM, errno.EROFS, errno.ESTALE),
)  # errors that the file's name and the system's text describe sufficiently
_FLAGS_OF_MEMORY = (
    *("num_workers", "batch_size", "upstream_batch_size", "downstream_batch_size"),
    *("info_nce_batch", "buffer_rows", "max_rows", "sampling_batch_size"),
)


def sentence_of(error: BaseException, flags: dict[str, Any]) -> str | None:
    """The sentence for an error that a user can act on; None for an internal error."""
    if lacks_memory(error):
        said = str(error) if isinstance(error, InputError) else first_line(error)
        return f"there is too little memory ({said}): {_way_out_of_memory(flags)}"
    if isinstance(error, InputError):
        return str(error)
    said = first_line(error)
    if package := _that_failed_to_import(error):
        if not isinstance(error, ImportError) or not error.name:
            error = ImportError(said, name=package)
        return str(missing_package(error, ""))
    if isinstance(error, OSError) and error.errno == errno.EMFILE and not error.filename:
        return "too many files are open: allow more, as by `ulimit -n 4096`"
    if isinstance(error, FileNotFoundError) and not _has_folder():
        return "the current folder has been removed: change to one that exists"
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, OSError) and "AF_UNIX path" in said:
        return str(too_long_for_sockets(tempfile.gettempdir()))
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in said:
        return "no folder for temporary files can be written: name one with TMPDIR"
    if type(error).__name__.startswith("Dist") or "/gloo/" in said or "NCCL error" in said:
        return f"another rank ended, or cannot be reached ({said}): see the message of that rank"
    return None


def _that_failed_to_import(error: BaseException) -> str | None:
    """The package whose import raised the error, of any kind; None if no import did, or ours."""
    if isinstance(error, ImportError) and error.name:
        return None if _is_ours(error.name) else error.name
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__") or "__main__"
        if frame.f_code.co_name == "<module>" and name != "__main__" and not _is_ours(name):
            return str(name).partition(".")[0]
    return None


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


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


def too_long_for_sockets(folder: str) -> InputError:
    """The error where every folder for temporary files has too long a path."""
    return InputError(
        f"the folder of temporary files, {folder}, has too long a path for a socket: "
        "name a shorter one with TMPDIR"
    )
