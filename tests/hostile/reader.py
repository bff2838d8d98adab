"""What a reader is to the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Check = Callable[[Any], "str | None"]


class Reader(NamedTuple):
    """A reader.

    Attributes:
        make: writes a valid folder.
        target: which of its files is damaged.
        kind: of its structure: see `structures`.
        call: reads; what it returns is compared.
        check: what is wrong with a result, of whatever damage.
    """

    make: Callable[[Path], None]
    target: str
    kind: str
    call: Callable[[Path], Any]
    check: Check
