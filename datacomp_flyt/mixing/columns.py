"""The score columns that a job can use: those of its score tables and of its metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.published import METADATA_COLUMN_OF, SCORER_OF
from datacomp_flyt.pool.download_keys import DownloadKeys
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from datacomp_flyt.pool.pool import FilePool, Pool
from datacomp_flyt.pool.score_table import ScoreTable


class Columns:
    """Columns by name. A score table goes before the metadata, where both have a name.

    DataComp's metadata holds the CLIP scores that FLYT calls vit-b-32 and vit-l-14: they are
    found under those names too.
    """

    def __init__(
        self,
        pool: Pool | FilePool,
        metadata_dir: str | None,
        scores_dir: str | None,
        num_workers: int,
        allow_partial: bool,
        drop_nonfinite: bool,
        keys: DownloadKeys | None = None,
    ) -> None:
        """
        Args:
            pool: the examples to join to; read from `metadata_dir`, if that is given.
            metadata_dir: DataComp metadata; None to look in score tables alone.
            scores_dir: parquet files, in sub-folders too; None for none.
            num_workers: threads.
            allow_partial, drop_nonfinite: accept examples without a score, or without a finite one.
            keys: looks up the uids of score tables that have img2dataset's keys in their place.
        """
        self.pool, self.num_workers = pool, num_workers
        self._allow_partial, self._drop_nonfinite = allow_partial, drop_nonfinite
        self._tables: list[ScoreTable] = []
        self._files = list(pool.shards)
        if scores_dir is not None:
            shards = open_shards(scores_dir, "--scores_dir", num_workers, True, keys)
            self._files += shards
            self._tables.append(ScoreTable(shards, f"--scores_dir {scores_dir}"))
        if metadata_dir is not None:
            self._tables.append(
                ScoreTable(pool.shards, f"--metadata_dir {metadata_dir}", pool.positions)
            )

    def find(
        self,
        names: Sequence[str],
        allow_missing: bool = False,
        otherwise: str = "mix the rest with --allow_missing_scores",
    ) -> list[str]:
        """Those of `names` that there are.

        Args:
            names: published names, or others.
            allow_missing: do without some of several.
            otherwise: what a user can do instead of adding one of several missing columns.

        Raises:
            InputError: one is missing and that is not allowed, or all are.
        """
        missing = [name for name in names if self._locate(name) is None]
        if missing and (not allow_missing or len(missing) == len(names)):
            wanted = [
                f"{name!r}" + (f" (made by scorer {SCORER_OF[name]})" if name in SCORER_OF else "")
                for name in missing
            ]
            there = sorted({column for table in self._tables for column in table.columns})
            raise InputError(
                f"no column {', '.join(wanted)} in the score tables or the metadata, which have "
                f"{', '.join(there) or 'no numeric columns'}: add it to --scores_dir"
                + (f", or {otherwise}" if len(names) > 1 else "")
            )
        if missing:
            print(f"mixing without {', '.join(missing)}: there are no such columns")
        return [name for name in names if name not in missing]

    def read(self, names: Sequence[str]) -> Iterator[NDArray[np.floating]]:
        """Columns [M] in the order of the pool, one after the other."""
        places = [self._locate(name) for name in names]
        readers: dict[int, Iterator[NDArray[np.floating]]] = {}
        for place in places:
            assert place is not None, "find() comes before read()"
            table, _ = place
            if id(table) not in readers:
                columns = [other[1] for other in places if other and other[0] is table]
                readers[id(table)] = table.read(
                    columns,
                    self.pool_in_memory(),
                    self.num_workers,
                    self._allow_partial,
                    self._drop_nonfinite,
                )
            yield next(readers[id(table)])

    def pool_in_memory(self) -> Pool:
        """The pool, for those who read more than columns: they are refused where it is in files."""
        assert isinstance(self.pool, Pool), "Method.reads_pool"
        return self.pool

    def files(self) -> list[ParquetShard]:
        """All that the columns may have been read of."""
        return self._files

    def uids(self) -> NDArray[np.void]:
        """uids [M] in the order of the columns, once these have been read: no more can be."""
        self.pool.positions.clear()
        return self.pool.uids

    def _locate(self, name: str) -> tuple[ScoreTable, str] | None:
        for table in self._tables:
            for column in (name, METADATA_COLUMN_OF.get(name)):
                if column in table.columns:
                    return table, column
        return None
