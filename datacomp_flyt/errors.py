"""Errors that users see as a sentence instead of a traceback. Importing this module is cheap."""

from __future__ import annotations

import errno
import lzma
import re
import struct
import sys
import tarfile
import zipfile
import zlib

_MAX_LENGTH = 2000  # characters of a sentence
_WORKER_TRACEBACK = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\n.*\n(?:\w+\.)*\w+: (.*)", re.DOTALL
)
# Errors that Python and readers of files raise for the content of a file. An error of another type
# comes from a filesystem, such as the client of a cloud.
_CONTENT_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError,
    LookupError, MemoryError, NameError, RuntimeError, SyntaxError, SystemError, TypeError,
    ValueError, lzma.LZMAError, struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_NO_MEMORY = re.compile(
    r"(out of|not enough|(can't|cannot|unable to|failed to) allocate) (\w+ )?memory|bad_alloc|"
    r"failed to map segment|can't start new thread|launch worker thread|"
    r"ALLOC_FAILED|killed by signal: Killed|killed \(SIGKILL\)",
    re.IGNORECASE,
)
_PATH_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class InputError(ValueError):
    """An error in the input: one sentence that names the file, row or flag, and the way out.

    The sentence may quote a file. Characters that would break the line or control a terminal are
    escaped, and the middle of a text that is too long is removed. A traceback that torch puts
    before the sentence of a data loader's worker is removed as well.
    """

    def __init__(self, sentence: str) -> None:
        if match := _WORKER_TRACEBACK.fullmatch(sentence.strip()):
            sentence = match[1]
        super().__init__(_shortened(printable(_shortened(sentence))))


class ReadError(InputError):
    """Storage failed while a file was read; the failure may be transient, so callers retry."""


class ChangedError(InputError):
    """A file changed while a run read it, so the results would mix two states of the input."""


class NothingUsable(InputError):
    """Readable files hold no usable sample. The message lists what they hold and what is needed."""


def unreadable(sentence: str, error: BaseException) -> InputError:
    """Make the error for a file that cannot be read.

    Args:
        sentence: the sentence for the user.
        error: the error that a reader or a filesystem raised.

    Returns:
        `ReadError` if storage failed; `InputError` if the fault is in the file's content or path.
    """
    return ReadError(sentence) if _is_storage_error(error) else InputError(sentence)


def _is_storage_error(error: BaseException) -> bool:
    if isinstance(error, _PATH_ERRORS):
        return False
    # Arrow raises an OSError for damaged content as well: without an errno, or with EINVAL if the
    # file contains an offset outside of it. An OSError with another errno is a filesystem's.
    if isinstance(error, OSError) and (
        type(error) is not OSError or error.errno not in (None, errno.EINVAL)
    ):
        return True
    # zipfile raises BadZipFile when a read fails; the read error is the cause of that error
    cause = error.__cause__ or error.__context__
    if cause is not None and _is_storage_error(cause):
        return True
    return not isinstance(error, (OSError, *_CONTENT_ERRORS)) and not _is_arrow_error(error)


def _is_arrow_error(error: BaseException) -> bool:
    # pyarrow is not imported here, so that `install --check` runs even if pyarrow is broken
    arrow = getattr(sys.modules.get("pyarrow"), "ArrowException", None)
    return arrow is not None and isinstance(error, arrow)


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether this error, or an error in its chain of causes, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        # an InputError may quote a file's text, which proves nothing
        if not isinstance(error, InputError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type if the text is empty."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def printable(text: str) -> str:
    """Escape the characters of a text that break lines or control a terminal.

    These are control characters, line breaks, marks of writing direction, and lone surrogates,
    which stand for bytes of a file name that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 500]} ... {text[-400:]}"
