"""The one exception that a user sees as a sentence instead of a traceback."""

from __future__ import annotations

import contextlib
import sys
import zipfile
import zlib
from collections.abc import Iterator

_LONGEST = 2000  # characters of a sentence
_CONTENT = (
    ValueError, LookupError, EOFError, NotImplementedError, MemoryError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


class InputError(ValueError):
    """Something given is wrong: one sentence that names the file, row or flag, and the way out.

    It often quotes the file. What would break the line or steer a terminal is spelled out, and
    what is too long is cut out of the middle.
    """

    def __init__(self, sentence: str) -> None:
        sentence = _shortened(sentence)
        if not sentence.isprintable():
            spelled = (c if c.isprintable() else repr(c)[1:-1] for c in sentence)
            sentence = _shortened("".join(spelled))
        super().__init__(sentence)


class ReadFailed(InputError):
    """Reading failed for a reason that may pass: work that met it is tried again."""


def unreadable(sentence: str, error: Exception) -> InputError:
    """That a file cannot be read: `ReadFailed`, unless what it holds is known to be the reason.

    Args:
        sentence: for the user.
        error: what a reader or a filesystem raised.
    """
    # of damage Arrow raises an OSError without a number; a filesystem's has one
    arrow = type(error) is OSError and error.errno is None
    return InputError(sentence) if arrow or isinstance(error, _CONTENT) else ReadFailed(sentence)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 500]} ... {text[-400:]}"


@contextlib.contextmanager
def exit_on_input_error(program: str) -> Iterator[None]:
    """Turn an `InputError` inside the block into `program: error: sentence` and exit code 2."""
    try:
        yield
    except InputError as error:
        sys.stdout.flush()
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a missing package inside the block into a sentence that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'datacomp-flyt[{extra}]'"
        ) from None
