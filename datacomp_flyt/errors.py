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

_LONGEST = 2000  # characters of a sentence
_OF_WORKER = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\n.*\n(?:\w+\.)*\w+: (.*)", re.DOTALL
)
# What Python, and readers of files, raise of what is in one. Clients of clouds have kinds of their
# own.
_CONTENT = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError,
    LookupError, MemoryError, NameError, RuntimeError, SyntaxError, SystemError, TypeError,
    ValueError, lzma.LZMAError, struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_NO_MEMORY = re.compile(
    r"(out of|not enough|(can't|cannot|unable to|failed to) allocate) (\w+ )?memory|bad_alloc|"
    r"failed to map segment|can't start new thread|launch worker thread|"
    r"ALLOC_FAILED|killed by signal: Killed",
    re.IGNORECASE,
)
_PLACE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class InputError(ValueError):
    """Something given is wrong: one sentence that names the file, row or flag, and the way out.

    The sentence often quotes the file. Characters that would break the line or control a terminal
    are escaped, and the middle of a text that is too long is cut out. A traceback that torch puts
    before the sentence of a data loader's worker is removed.
    """

    def __init__(self, sentence: str) -> None:
        if of_worker := _OF_WORKER.fullmatch(sentence.strip()):
            sentence = of_worker[1]
        super().__init__(_shortened(printable(_shortened(sentence))))


class ReadError(InputError):
    """Storage failed while a file was read, which may pass: who met it tries again."""


class ChangedError(InputError):
    """A file changed while a run read it, so the results would mix two states of the input."""


class NothingUsable(InputError):
    """Readable files hold no usable sample. The message lists what they hold and what is needed."""


def unreadable(sentence: str, error: BaseException) -> InputError:
    """That a file cannot be read: `ReadError` where storage failed, not what it holds or its place.

    Args:
        sentence: for the user.
        error: what a reader or a filesystem raised.
    """
    return ReadError(sentence) if _is_of_storage(error) else InputError(sentence)


def _is_of_storage(error: BaseException) -> bool:
    if isinstance(error, _PLACE):
        return False
    # of damage Arrow raises an OSError without a number; a filesystem's has one, but EINVAL is of
    # a place that the file itself named
    if isinstance(error, OSError) and (
        type(error) is not OSError or error.errno not in (None, errno.EINVAL)
    ):
        return True
    before = error.__cause__ or error.__context__  # of which zipfile says that it is no zip file
    if before is not None and _is_of_storage(before):
        return True
    return not isinstance(error, (OSError, *_CONTENT)) and not _is_of_arrow(error)


def _is_of_arrow(error: BaseException) -> bool:
    # not imported here: `install --check` runs where pyarrow is broken
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
    """The first line of an error's text, or the name of its type if the text is empty."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def printable(text: str) -> str:
    """The text on one line, with characters that break lines or control a terminal escaped.

    These are control characters, line breaks, marks of writing direction, and halves of surrogate
    pairs, which stand for bytes of a file name that are no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 500]} ... {text[-400:]}"
