"""The one exception that a user sees as a sentence instead of a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_LONGEST = 2000  # characters of a sentence


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


class ReadError(InputError):
    """A file cannot be read. It may be damaged, or what it comes from was for a moment.

    Attributes:
        of_system: it was the system or the network that said so, not what was read.
    """

    def __init__(self, sentence: str, cause: Exception | None = None) -> None:
        super().__init__(sentence)
        known = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
        system = isinstance(cause, OSError) and cause.errno is not None
        self.of_system = system and not isinstance(cause, known)


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
