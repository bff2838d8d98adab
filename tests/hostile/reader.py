"""The type of the readers that are tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

GROWTH = 1 << 28
PICTURE = 8 * 89_478_485 + (1 << 26)
"""Memory for the largest picture that Pillow decodes: two copies of 4 bytes a pixel, and a crop."""
Check = Callable[[Any], "str | None"]


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        make: a function that writes a folder with a valid file.
        target: the path of the file that is damaged, in the folder.
        call: a function that reads the folder and returns a result that can be compared.
        check: a function that returns a fault of the result of a damaged file, or None.
        exact: True if the file has checksums, so that a result must be that of the valid file.
        table: True if the file is a parquet table, which other tools may write differently.
        memory: the limit of the memory of a call, in bytes.
    """

    make: Callable[[Path], None]
    target: str
    call: Callable[[Path], Any]
    check: Check
    exact: bool = False
    table: bool = False
    memory: int = GROWTH
