"""Reads score tables, parquet files of uids and scores, and joins them to a pool by uid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.arrow_types import value_type
from datacomp_flyt.pool.join_errors import missing, not_finite, repeated
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import Pool, iter_uids
from datacomp_flyt.pool.row_order import Column, RowOrder
from datacomp_flyt.pool.score_values import fits_float32, is_number, to_floats
from datacomp_flyt.pool.uid_search import Positions
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.threads import map_threads


class ScoreTable:
    """Columns of scores in parquet files, which are read one column at a time.

    Files may have different columns and rows, in any order. The rows of a column are those of all
    files that have it.
    """

    def __init__(
        self, shards: Sequence[ParquetShard], name: str, positions: list[Positions] | None = None
    ) -> None:
        """
        Args:
            shards: files with a `uid` column each.
            name: the name of the table in messages: its flag and folder.
            positions: the index in the pool of each row of each file, if that is known, as for
                the pool's own metadata.
        """
        self.name = name
        self._positions = positions
        self._shards_of: dict[str, tuple[int, ...]] = {}
        self._shards = list(shards)
        for index, shard in enumerate(shards):
            for column in shard.types:
                self._shards_of[column] = (*self._shards_of.get(column, ()), index)

    def __contains__(self, column: object) -> bool:
        """Return whether a file has a column of this name, whatever its type."""
        return column in self._shards_of

    def similar(self, name: str) -> str | None:
        """Find a column whose name differs from `name` only in case and punctuation."""
        wanted = _letters(name)
        return next((column for column in self._shards_of if _letters(column) == wanted), None)

    def files_of(self, column: str) -> tuple[ParquetShard, ...]:
        """Return the files that have a column."""
        return tuple(self._shards[index] for index in self._shards_of[column])

    @property
    def columns(self) -> list[str]:
        """The names of the columns that hold numbers in some file, in order of appearance."""
        return [
            column
            for column in self._shards_of
            if any(is_number(kind) and kind != pa.null() for kind in self._types(column))
        ]

    @property
    def float_columns(self) -> list[str]:
        """The names of the columns that hold floats in some file, in order of appearance."""
        return [
            column
            for column in self._shards_of
            if any(pa.types.is_floating(value_type(kind)) for kind in self._types(column))
        ]

    def describe(self, column: str, name: str) -> str:
        """Return a line on the files that a column is read from, for the user.

        It names a file that spells the column differently, since that file is not read.

        Args:
            column: the name of the column in the files.
            name: the user's name for it.
        """
        num_files = len(self._shards_of[column])
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
            + f" ({num_files:,} file{'s' if num_files > 1 else ''}{spelled})"
        )

    def dtype(self, column: str) -> np.dtype[Any]:
        """Return the dtype that holds a column, see `column_dtype`."""
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
        """Yield each column as a float array [M] in the order of the pool.

        Columns of float64, integers and decimals are float64, all others float32. Examples
        without a score, or with a dropped one, are NaN. For the arguments see `read_rows`.
        """
        found = self.read_rows(columns, pool, num_workers, allow_partial, drop_nonfinite, progress)
        return (column.in_pool(num_workers) for column in found)

    def read_rows(
        self,
        columns: Iterable[str],
        pool: Pool,
        num_workers: int,
        allow_partial: bool = False,
        drop_nonfinite: bool = False,
        progress: bool = True,
    ) -> Iterator[Column]:
        """Yield each column in the order of its files. Dropped scores are NaN.

        Args:
            columns: the names of columns that the table has.
            pool: the pool to join to; rows of other examples are ignored.
            num_workers: the number of threads.
            allow_partial: accept examples without a score.
            drop_nonfinite: accept scores that are NaN, infinite or null.
            progress: show progress bars.

        Raises:
            InputError: a column is not numeric, an example has no score or two, a score is not
                finite, or a file cannot be read.
        """
        columns = list(columns)
        for column in columns:
            self.dtype(column)
        joins: dict[tuple[int, ...], _Join] = {}
        for done, column in enumerate(columns, 1):
            group = self._shards_of[column]
            if group not in joins:
                joins[group] = self._join(column, pool, num_workers, allow_partial, progress)
            join = joins[group]
            if not any(self._shards_of[later] == group for later in columns[done:]):
                del joins[group]
            yield Column(
                self._assemble(column, join, num_workers, drop_nonfinite, progress), join.order
            )

    def _join(
        self, column: str, pool: Pool, num_workers: int, allow_partial: bool, progress: bool
    ) -> _Join:
        """Find the rows of the files that have a column in a pool."""
        indices = self._shards_of[column]
        shards = [self._shards[index] for index in indices]
        if self._positions is not None:
            positions = [self._positions[index] for index in indices]
        else:
            positions = _locate(shards, pool, num_workers, progress)
        pa.default_memory_pool().release_unused()
        inside = [part >= 0 for part in positions]
        join = _Join(
            RowOrder(
                len(pool),
                np.concatenate([part[mask] for part, mask in zip(positions, inside, strict=True)]),
            ),
            [None if mask.all() else mask for mask in inside],
        )
        has_score = join.order.to_pool(np.ones(len(join.order), np.bool_), False, num_workers)
        covered = int(np.count_nonzero(has_score))
        if covered < len(join.order):
            raise repeated(self.name, column, _first_repeated(shards, positions, pool))
        if covered < len(pool) and not (allow_partial and covered):
            first = _name(pool, int(has_score.argmin()))
            images_known = pool.available is not None
            raise missing(self.name, column, len(pool) - covered, len(pool), first, images_known)
        return join

    def _assemble(
        self, column: str, join: _Join, num_workers: int, drop_nonfinite: bool, progress: bool
    ) -> NDArray[np.floating]:
        """Read the rows of a column that are in the pool."""
        shards, dtype = self.files_of(column), self.dtype(column)
        values: NDArray[np.floating] = np.empty(len(join.order), dtype)
        ends = np.cumsum(
            [
                shard.num_rows if mask is None else np.count_nonzero(mask)
                for shard, mask in zip(shards, join.inside, strict=True)
            ]
        )

        def read(index: int) -> tuple[int, int]:
            """Read a file; return the number of non-finite scores and the row of the first."""
            shard, inside = shards[index], join.inside[index]
            row, wrong, first = 0, 0, -1
            end = int(ends[index - 1]) if index else 0
            for batch in shard.batches(column):
                scores = to_floats(batch, dtype, shard.path, column, row)
                rows = None if inside is None else np.flatnonzero(inside[row : row + len(batch)])
                scores = scores if rows is None else scores[rows]
                usable = np.isfinite(scores)
                if not usable.all():
                    bad = np.flatnonzero(~usable)
                    if not wrong:
                        first = row + int(bad[0] if rows is None else rows[bad[0]])
                    wrong += len(bad)
                    scores = np.where(usable, scores, dtype.type(np.nan))
                values[end : end + len(scores)] = scores
                end += len(scores)
                row += len(batch)
            return wrong, first

        label = f"reading {column}" if progress else None
        faults = map_threads(read, range(len(shards)), num_workers, label)
        wrong = sum(count for count, _ in faults)
        if wrong and not drop_nonfinite:
            shard, row = next(
                (shard, row) for shard, (count, row) in zip(shards, faults, strict=True) if count
            )
            raise not_finite(column, wrong, f"the first in {shard.path} row {row}")
        return values


@dataclass(frozen=True)
class _Join:
    """The rows of some files that are in a pool.

    Attributes:
        order: their order, file after file.
        inside: a mask of these rows for each file; None for all rows.
    """

    order: RowOrder
    inside: list[NDArray[np.bool_] | None]


def _locate(
    shards: Sequence[ParquetShard], pool: Pool, num_workers: int, progress: bool
) -> list[Positions]:
    """Return the index in the pool of each row of each file; -1 for rows that are not in it."""
    starts = np.cumsum([0, *(shard.num_rows for shard in shards)])
    uids = np.empty(int(starts[-1]), UID_DTYPE)

    def read(index: int) -> None:
        row = int(starts[index])
        for part in iter_uids(shards[index]):
            uids[row : row + len(part)] = part
            row += len(part)

    map_threads(read, range(len(shards)), num_workers, "joining" if progress else None)
    return np.split(pool.locate(uids, num_workers), starts[1:-1])


def column_dtype(shards: Iterable[ParquetShard], column: str) -> np.dtype[Any]:
    """Return float32 if it holds the column of every file, else float64.

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
    for shard, part in zip(shards, positions, strict=True):
        for row, index in enumerate(part.tolist()):
            name = f"{shard.path} row {row}"
            if index >= 0 and index in seen:
                return f"{_name(pool, index)} in {seen[index]} and {name}"
            seen[index] = name
    raise AssertionError("called only if a uid is repeated")
