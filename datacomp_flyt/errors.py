"""The one exception that a user sees as a sentence instead of a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """Something given is wrong: one sentence that names the file, row or flag, and the way out."""


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
