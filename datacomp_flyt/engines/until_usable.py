"""Writes no result before one shard has a usable row: a pool without any is the wrong pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from datacomp_flyt.errors import NothingUsable
from datacomp_flyt.files.open_file import readable

_MOST = 1_000  # shards without a usable row, from the first one on, before the job stops
_SMALL = 1 << 16  # bytes; larger files have rows and need not be opened


def has_rows(path: Path) -> bool:
    """Return whether a finished result has rows.

    A result without rows is made again, which takes no time: its tar may be mended by now.
    """
    if path.stat().st_size >= _SMALL:
        return True
    with readable(str(path), "parquet", "remove it"):
        return int(pq.read_metadata(str(path)).num_rows) > 0


class Usable(NamedTuple):
    """The numbers of rows and of usable rows in a result, and the reasons of the others."""

    rows: int
    usable: int
    reasons: Mapping[str, int]


class UntilUsable:
    """A `write` function for `run_shards` that writes nothing while no shard has a usable row.

    A pool that lost images has tars without a member, and their results have no rows: such a
    shard is finished, and the next run looks at it again. If all shards are like that, something
    is wrong with all of them, and nothing is written.
    """

    def __init__(
        self,
        write: Callable[[str, Any], int],
        count: Callable[[Any], Usable],
        any_finished: bool,
        where: str,
        usable: str = "usable",
    ) -> None:
        """
        Args:
            write: writes a result under its name and returns its number of rows.
            count: counts the rows of a result.
            any_finished: whether some shards are finished already, so that no result is held back.
            where: the flag and folder of the shards, for the message.
            usable: the words for a usable row, after "none".
        """
        self._write, self._count, self._where, self._usable = write, count, where, usable
        self._any_usable = any_finished
        self._held: dict[str, Any] = {}

    def __call__(self, name: str, result: Any) -> int:
        """Write a result and those that were held back, or hold it back.

        Raises:
            NothingUsable: too many results are held back.
        """
        if not self._any_usable and not self._count(result).usable:
            self._held[name] = result
            if len(self._held) == _MOST:
                raise self._nothing(f"its first {_MOST:,} shards hold")
            return 0
        self._any_usable = True
        held, self._held = self._held, {}
        return self._write(name, result) + sum(self._write(*item) for item in held.items())

    def finish(self) -> None:
        """Raise NothingUsable if all results were held back."""
        if self._held:
            held = len(self._held)
            raise self._nothing("its 1 shard holds" if held == 1 else f"its {held:,} shards hold")

    def _nothing(self, which: str) -> NothingUsable:
        rows, reasons = 0, Counter[str]()
        for result in self._held.values():
            counted = self._count(result)
            rows += counted.rows
            reasons.update(counted.reasons)
        why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items() if count)
        seen = f"{rows:,} row{'s' * (rows != 1)}, none {self._usable}"
        way_out = "give shards that have some"
        if not rows:
            seen, way_out = "no sample at all", "give shards of which something was downloaded"
        return NothingUsable(
            f"{self._where}: {which} {seen}{f' ({why})' if why else ''}, so nothing was written: "
            + way_out
        )
