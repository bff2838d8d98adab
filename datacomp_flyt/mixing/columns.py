"""Score columns by name: those of score tables, and those of the metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.published import METADATA_COLUMN_OF, SCORER_OF
from datacomp_flyt.pool.parquet import check_shards, open_shards
from datacomp_flyt.pool.pool import FilePool, Pool
from datacomp_flyt.pool.row_order import Column
from datacomp_flyt.pool.score_table import ScoreTable
from datacomp_flyt.streams import say
from datacomp_flyt.tars.download_keys import DownloadKeys

Source = tuple[ScoreTable, str]
"""A table, and the name of a column in that table."""


class Columns:
    """A pool's score columns, found by name. Score tables take precedence over the metadata.

    DataComp's metadata holds the CLIP scores that FLYT calls vit-b-32 and vit-l-14: they are
    found under those names too. The first table with the column is used; if its column is not
    numeric, that is an error.

    Attributes:
        pool: the examples that columns are joined to.
        num_workers: threads.
        drop_nonfinite: whether examples with a score that is not finite are accepted, and left out.
    """

    def __init__(
        self,
        pool: Pool | FilePool,
        metadata_dir: str | None,
        scores_dir: str | None,
        num_workers: int,
        allow_partial: bool,
        drop_nonfinite: bool,
        announce: bool = True,
        *,
        keys: DownloadKeys | None = None,
        single_use: bool = False,
    ) -> None:
        """
        Args:
            pool: the examples to join to, read from `metadata_dir` if that is given.
            metadata_dir: folder of DataComp metadata; None to search only score tables.
            scores_dir: folder of parquet files, sub-folders included; None for no score table.
            num_workers: threads.
            allow_partial: accept examples without a score.
            drop_nonfinite: accept examples with a score that is NaN, infinite or null.
            announce: print the files that each column is read from.
            keys: looks up the uids of score tables that have img2dataset's keys instead.
            single_use: free the memory that reading needs (4 bytes an example) once `uids` is
                called; no column can be read after that.
        """
        self._announce, self._announced = announce, set[str]()
        self.pool, self.num_workers, self.drop_nonfinite = pool, num_workers, drop_nonfinite
        self._allow_partial, self._single_use, self._released = allow_partial, single_use, False
        self._tables: list[ScoreTable] = []
        self._files = list(pool.shards)
        self._metadata_dir, self._has_scores_dir = metadata_dir, scores_dir is not None
        if scores_dir is not None:
            shards = open_shards(scores_dir, "--scores_dir", num_workers, True, keys)
            self._files += shards
            self._tables.append(ScoreTable(shards, f"--scores_dir {scores_dir}"))
        if metadata_dir is not None:
            self._tables.append(
                ScoreTable(pool.shards, f"--metadata_dir {metadata_dir}", pool.positions)
            )

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.pool)

    def __repr__(self) -> str:
        return (
            f"<pool of {self.pool.num_listed:,} rows in {len(self.pool.shards):,} files of "
            f"{self._metadata_dir}, {len(self.columns)} score columns>"
        )

    @property
    def columns(self) -> list[str]:
        """Names of the columns that can be scores, sorted.

        They are the numeric columns of the score tables and the float columns of the metadata. The
        metadata's integers, such as `original_width`, can be read too, but are not listed.
        """
        *score_tables, last = self._tables
        names = last.columns if self._metadata_dir is None else last.float_columns
        return sorted({*names, *(name for table in score_tables for name in table.columns)})

    def find(
        self,
        names: Sequence[str],
        allow_missing: bool = False,
        otherwise: str = "mix the rest with --allow_missing_scores",
        scorers: Mapping[str, str] = SCORER_OF,
    ) -> list[str]:
        """Return those of `names` that exist.

        Args:
            names: published names, or others.
            allow_missing: accept that some of several names do not exist.
            otherwise: a further way out for the error about several names.
            scorers: the scorer that makes a column, by column, for the same error.

        Raises:
            InputError: a column is missing and that is not allowed, or all are missing; a column is
                not numeric; or two names are the same column.
        """
        check_named_once(names, "the list of score columns")
        sources = {name: self._locate(name) for name in names}
        missing = [name for name, source in sources.items() if source is None]
        if missing and (not allow_missing or len(missing) == len(names)):
            raise self._missing(missing, scorers, otherwise if len(names) > 1 else None)
        existing: dict[Source, str] = {}
        for name, source in sources.items():
            if source is None:
                continue
            table, column = source
            if source in existing:
                raise InputError(
                    f"{existing[source]!r} and {name!r} are one column, {column!r} of "
                    f"{table.name}, which would count twice: name it once"
                )
            existing[source] = name
            table.dtype(column)
        if missing:
            say(f"mixing without {', '.join(missing)}: there are no such columns")
        return list(existing.values())

    def _missing(
        self, names: Sequence[str], scorers: Mapping[str, str], otherwise: str | None
    ) -> InputError:
        """Make the error for columns that do not exist; for the arguments see `find`."""
        wanted = [
            f"{name!r}" + (f" (made by scorer {scorers[name]})" if name in scorers else "")
            for name in names
        ]
        tables = "the score tables or the metadata, which have"
        way_out = "add it to --scores_dir"
        if not self._has_scores_dir:
            tables = "the metadata, which has"
            command = "datacomp-flyt score"
            if names[0] in scorers:
                command += f" --scorer {scorers[names[0]]}"
            way_out = f"give the --scores_dir of `{command}`"
        if any("," in name for name in names):
            way_out += " (names are separated by blanks)"
        return InputError(
            f"no column {', '.join(wanted)} in {tables} "
            f"{', '.join(self.columns) or 'no columns of scores'}: {way_out}"
            + (f", or {otherwise}" if otherwise else "")
        )

    def read(self, names: Sequence[str]) -> Iterator[NDArray[np.floating]]:
        """Yield columns [M] in the order of the pool, one after the other."""
        for column in self.read_rows(names):
            yield column.in_pool(self.num_workers)

    def read_rows(self, names: Sequence[str]) -> Iterator[Column]:
        """Yield columns in the order of their files, one after the other."""
        assert not self._released, "columns of single use are read before uids() is called"
        sources = self._sources(names)
        readers: dict[int, Iterator[Column]] = {}
        for table, _ in sources:
            if id(table) not in readers:
                columns = [column for other, column in sources if other is table]
                readers[id(table)] = table.read_rows(
                    columns,
                    self.pool_in_memory(),
                    self.num_workers,
                    self._allow_partial,
                    self.drop_nonfinite,
                )
            yield next(readers[id(table)])

    def each_time(self, names: Sequence[str]) -> Iterable[Column]:
        """Return an iterable that reads the columns anew each time, in the order of their files."""
        return _EachTime(self, tuple(names))

    def _sources(self, names: Sequence[str]) -> list[Source]:
        """The source of each column, which is printed at the first read."""
        sources = []
        for name in names:
            source = self._locate(name)
            assert source is not None, "find() comes before read()"
            sources.append(source)
            if self._announce and name not in self._announced:
                self._announced.add(name)
                say(source[0].describe(source[1], name))
        return sources

    def pool_in_memory(self) -> Pool:
        """The pool, for methods that read more of it than columns.

        Raises:
            InputError: the pool is in files.
        """
        if not isinstance(self.pool, Pool):
            raise InputError(
                "this method reads more than score columns, and --work_dir holds only columns: "
                "leave --work_dir out, or make a column first (datacomp-flyt score)"
            )
        return self.pool

    def check_unchanged(self) -> None:
        """Raise InputError if a file that the columns may have been read from has changed."""
        check_shards(self._files)
        if self.pool.available is not None:
            self.pool.available.check_unchanged()

    def uids(self) -> NDArray[np.void]:
        """Uids [M] in the order of the columns; for a `FilePool`, call after reading columns."""
        if self._single_use:
            self._released = True
            self.pool.positions.clear()
        return self.pool.uids

    def _locate(self, name: str) -> Source | None:
        """Return the first table that has a column of this name, or of the metadata's name for it.

        Raises:
            InputError: an earlier table has a similarly spelled column.
        """
        spelled = None
        names = [name, METADATA_COLUMN_OF[name]] if name in METADATA_COLUMN_OF else [name]
        for table in self._tables:
            for column in names:
                if column not in table:
                    continue
                if spelled is not None:
                    raise InputError(
                        f"{spelled[0].name} has {spelled[1]!r}, which is not spelled {name!r}, and "
                        f"{column!r} of {table.name} would be read instead: rename the column of "
                        "the score table"
                    )
                return table, column
            for similar in filter(None, map(table.similar, names)):
                spelled = table, similar
        return None


@dataclass(frozen=True)
class _EachTime:
    columns: Columns
    names: tuple[str, ...]

    def __iter__(self) -> Iterator[Column]:
        return self.columns.read_rows(self.names)


def check_named_once(names: Sequence[str], flag: str) -> None:
    """Raise InputError if a list has a name twice; `flag` is the flag that gives the list."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"{flag} has {name!r} twice, which would count twice: name it once")
