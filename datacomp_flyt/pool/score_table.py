"""Score tables: parquet files of a uid and some scores, joined to a pool on the uid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.join_errors import missing, not_finite, repeated
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import Pool, iter_uids
from datacomp_flyt.pool.score_values import fits_float32, is_number, to_floats
from datacomp_flyt.pool.uid_search import Positions, find_uids, position_dtype
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.threads import map_threads


class ScoreTable:
    """Columns of scores spread over parquet files in any order, read one column at a time.

    Files may hold different columns and rows. For the rows of a column, all files that have it
    count together.
    """

    def __init__(
        self, shards: Sequence[ParquetShard], name: str, positions: list[Positions] | None = None
    ) -> None:
        """
        Args:
            shards: files with a `uid` column each.
            name: what to call the table in messages: its flag and folder.
            positions: where each file's rows are in the pool, where that is known: the pool's own.
        """
        self.name = name
        self._positions = positions
        self._shards_of: dict[str, tuple[int, ...]] = {}
        self._shards = list(shards)
        for number, shard in enumerate(shards):
            for column in shard.types:
                self._shards_of[column] = (*self._shards_of.get(column, ()), number)

    def __contains__(self, column: object) -> bool:
        """Return whether a file has a column of this name, whatever its type."""
        return column in self._shards_of

    def similar(self, name: str) -> str | None:
        """A column whose name differs from `name` in case and punctuation only, if there is one."""
        wanted = _letters(name)
        return next((column for column in self._shards_of if _letters(column) == wanted), None)

    def files_of(self, column: str) -> tuple[ParquetShard, ...]:
        """The files that have a column."""
        return tuple(self._shards[number] for number in self._shards_of[column])

    @property
    def columns(self) -> list[str]:
        """Names of the columns that hold numbers in some file, in order of appearance."""
        return [
            column
            for column in self._shards_of
            if any(is_number(kind) and kind != pa.null() for kind in self._types(column))
        ]

    def describe(self, column: str, name: str) -> str:
        """A line on the files that a column is read from; `name` is the user's name for it.

        It names a file that spells the column differently, whose rows have no score.
        """
        number = len(self._shards_of[column])
        without = (shard for shard in self._shards if column not in shard.types)
        spelled = next(
            (
                f"; {shard.path} has {other!r}, which is not read"
                for shard in without
                for other in shard.types
                if _letters(other) == _letters(column)
            ),
            "",
        )
        return (
            f"column {name!r} from {self.name}"
            + (f": {column}" if column != name else "")
            + f" ({number:,} file{'s' if number > 1 else ''}{spelled})"
        )

    def dtype(self, column: str) -> np.dtype[Any]:
        """See `column_dtype`."""
        return column_dtype(self.files_of(column), column)

    def _types(self, column: str) -> set[pa.DataType]:
        return {shard.types[column] for shard in self.files_of(column)}

    def read(
        self,
        columns: Iterable[str],
        pool: Pool,
        num_workers: int,
        allow_partial: bool = False,
        drop_nonfinite: bool = False,
        progress: bool = True,
    ) -> Iterator[NDArray[np.floating]]:
        """Each column in turn as a float array [M] in the order of the pool.

        float64 columns stay so, all others come as float32 (integers as float64). Examples
        without a score, or with a dropped one, are NaN.

        Args:
            columns: names of columns that the table has.
            pool: the pool to join to; rows of other examples are ignored.
            num_workers: threads.
            allow_partial: accept examples without a score.
            drop_nonfinite: accept scores that are NaN, infinite or null.

        Raises:
            InputError: a column is not numeric, an example has no score or two, a score is not
                finite, or a file cannot be read.
        """
        columns = list(columns)
        for column in columns:
            self.dtype(column)
        positions: dict[tuple[int, ...], list[Positions]] = {}
        for number, column in enumerate(columns):
            group = self._shards_of[column]
            if group not in positions:
                positions[group] = self._join(column, pool, num_workers, allow_partial, progress)
            yield self._assemble(
                column, positions[group], len(pool), num_workers, drop_nonfinite, progress
            )
            if not any(self._shards_of[later] == group for later in columns[number + 1 :]):
                del positions[group]
            pa.default_memory_pool().release_unused()

    def _join(
        self, column: str, pool: Pool, num_workers: int, allow_partial: bool, progress: bool
    ) -> list[Positions]:
        numbers = self._shards_of[column]
        if self._positions is not None and len(numbers) == len(self._positions):
            return self._positions
        shards = [self._shards[number] for number in numbers]

        def locate(shard: ParquetShard) -> Positions:
            parts = [find_uids(pool.high, pool.low, uids) for uids in iter_uids(shard)]
            return np.concatenate([np.empty(0, position_dtype(len(pool))), *parts])

        if self._positions is not None:
            positions = [self._positions[number] for number in numbers]
        else:
            positions = map_threads(locate, shards, num_workers, "joining" if progress else None)
        pa.default_memory_pool().release_unused()
        seen = np.zeros(len(pool), np.bool_)
        for places in positions:
            seen[places[places >= 0]] = True
        covered = int(np.count_nonzero(seen))
        if covered < sum(int(np.count_nonzero(places >= 0)) for places in positions):
            raise repeated(self.name, column, _first_repeated(shards, positions, pool))
        if covered < len(pool) and not (allow_partial and covered):
            first = _name(pool, int(seen.argmin()))
            images_known = pool.available is not None
            raise missing(self.name, column, len(pool) - covered, len(pool), first, images_known)
        return positions

    def _assemble(
        self,
        column: str,
        positions: list[Positions],
        length: int,
        num_workers: int,
        drop_nonfinite: bool,
        progress: bool,
    ) -> NDArray[np.floating]:
        shards, dtype = self.files_of(column), self.dtype(column)
        values: NDArray[np.floating] = np.full(length, np.nan, dtype)

        def place(shard: ParquetShard, positions: Positions) -> tuple[int, int]:
            """Number of non-finite scores and the row of the first."""
            row, wrong, first = 0, 0, -1
            for batch in shard.batches(column):
                scores = to_floats(batch, dtype, shard.path, column, row)
                places = positions[row : row + len(batch)]
                inside = places >= 0
                usable = np.isfinite(scores)
                if not usable.all():
                    bad = np.flatnonzero(inside & ~usable)
                    if len(bad) and not wrong:
                        first = row + int(bad[0])
                    wrong += len(bad)
                    inside &= usable
                if inside.all():
                    values[places] = scores
                else:
                    values[places[inside]] = scores[inside]
                row += len(batch)
            return wrong, first

        found = map_threads(
            lambda pair: place(*pair),
            zip(shards, positions, strict=True),
            num_workers,
            f"reading {column}" if progress else None,
        )
        wrong = sum(count for count, _ in found)
        if wrong and not drop_nonfinite:
            shard, row = next(
                (shard, row) for shard, (count, row) in zip(shards, found, strict=True) if count
            )
            raise not_finite(column, wrong, f"the first in {shard.path} row {row}")
        return values


def column_dtype(shards: Iterable[ParquetShard], column: str) -> np.dtype[Any]:
    """float32 if that holds the column of every file, else float64.

    Raises:
        InputError: the column is not numeric in one of the files.
    """
    shards = list(shards)
    for shard in shards:
        if not is_number(kind := shard.types[column]):
            others = sorted({str(other.types[column]) for other in shards} - {str(kind)})
            raise InputError(
                f"{shard.path} has column {column!r} of type {kind}"
                + (f" (other files: {', '.join(others)})" if others else "")
                + ", and scores are numbers: write it as float or double, or under another name"
            )
    narrow = all(fits_float32(shard.types[column]) for shard in shards)
    return np.dtype(np.float32 if narrow else np.float64)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _name(pool: Pool, index: int) -> str:
    return format_uid(pool.uids_of(slice(index, index + 1))[0])


def _first_repeated(shards: list[ParquetShard], positions: list[Positions], pool: Pool) -> str:
    seen: dict[int, str] = {}
    for shard, places in zip(shards, positions, strict=True):
        for row, place in enumerate(places.tolist()):
            here = f"{shard.path} row {row}"
            if place >= 0 and place in seen:
                return f"{_name(pool, place)} in {seen[place]} and {here}"
            seen[place] = here
    raise AssertionError("called only where a uid is repeated")
