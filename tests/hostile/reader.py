"""The description of a reader for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

GROWTH = 1 << 28
PICTURE = 8 * 89_478_485 + (1 << 26)
"""Memory of the largest picture that Pillow decodes: 4 bytes a pixel, twice, and its crop."""
Check = Callable[[Any], "str | None"]


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        make: writes a folder with a valid file.
        target: the file of the folder that is damaged.
        call: reads the folder and returns a result that can be compared.
        check: returns what is wrong with a result of any damaged file, or None.
        exact: the file has checksums, so that a result has to be that of the valid file.
        table: the file is a parquet table, which other tools may write in other ways.
        memory: the bytes that a call may take.
    """

    make: Callable[[Path], None]
    target: str
    call: Callable[[Path], Any]
    check: Check
    exact: bool = False
    table: bool = False
    memory: int = GROWTH
