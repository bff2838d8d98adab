"""What a reader is to the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

GROWTH = 1 << 28
PICTURE = 8 * 89_478_485 + (1 << 26)
"""Of the largest picture that Pillow decodes: 4 bytes a pixel, and again as RGB, and its crop."""
Check = Callable[[Any], "str | None"]


class Reader(NamedTuple):
    """A reader.

    Attributes:
        make: writes a valid folder.
        target: which of its files is damaged.
        kind: of its structure: see `structures`.
        call: reads; what it returns is compared.
        check: what is wrong with a result, of whatever damage.
        exact: its file has checksums: of damaged bytes there is the right answer, or none.
        memory: bytes that it may take.
    """

    make: Callable[[Path], None]
    target: str
    kind: str
    call: Callable[[Path], Any]
    check: Check
    exact: bool = False
    memory: int = GROWTH
