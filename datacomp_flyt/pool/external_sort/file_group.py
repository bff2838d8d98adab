"""Parquet files that have the same columns, read row by row for sorting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.external_sort.uid_slices import Rows
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import check_npz, in_pool
from datacomp_flyt.pool.score_values import to_floats
from datacomp_flyt.progress import with_progress


@dataclass(frozen=True)
class FileGroup:
    """Files, and columns that are in all of them.

    Attributes:
        name: the name of the files in messages: their flag and folder.
        shards: the files.
        columns: dtypes by name.
        is_pool: whether the files are the metadata, which may have npz files beside them. Rows
            whose download failed are then left out.
        available: the list of images, if rows without an image are left out too.
    """

    name: str
    shards: tuple[ParquetShard, ...]
    columns: Mapping[str, np.dtype[Any]]
    is_pool: bool = False
    available: Available | None = None

    @property
    def num_rows(self) -> int:
        """The number of rows of all files, including those that are left out."""
        return sum(shard.num_rows for shard in self.shards)

    def parts(self, rows: int) -> Iterator[FileGroup]:
        """The same, some files at a time: until they have so many rows."""
        part, total = list[ParquetShard](), 0
        for shard in self.shards:
            part.append(shard)
            total += shard.num_rows
            if total >= rows:
                yield replace(self, shards=tuple(part))
                part, total = [], 0
        if part:
            yield replace(self, shards=tuple(part))

    def batches(self) -> Iterator[Rows]:
        """All rows except those that are left out, some at a time.

        Raises:
            InputError: a value is no uid, or a number that no float64 equals; a file is damaged; or
                an npz has another number of rows than its parquet.
        """
        for shard in self.shards:
            if self.is_pool:
                check_npz(shard)
            row = 0
            for uids, batch, there in self._rows(shard):
                values = {
                    name: to_floats(batch.column(1 + n), dtype, shard.path, name, row).copy()
                    for n, (name, dtype) in enumerate(self.columns.items())
                }
                rows = Rows(uids["f0"].copy(), uids["f1"].copy(), values)
                yield rows if there is None else rows.take(np.flatnonzero(there))
                row += len(batch)

    def _rows(
        self, shard: ParquetShard
    ) -> Iterator[tuple[NDArray[np.void], pa.RecordBatch, NDArray[np.bool_] | None]]:
        """Rows of a file, some at a time, with a mask of the rows to keep; None keeps all."""
        if not self.is_pool:
            for uids, batch in shard.rows_with_uids(tuple(self.columns)):
                yield uids, batch, None
            return
        for uids, batch, there in shard.pool_rows(tuple(self.columns)):
            yield uids, batch, in_pool(uids, there, self.available)

    def rows_of(self, uid: str) -> Iterator[str]:
        """Where the rows of a uid are, as people say it; files are read as rows are asked for."""
        for shard in with_progress(self.shards, f"looking for {uid}", len(self.shards), "file"):
            row = 0
            for uids, _, there in replace(self, columns={})._rows(shard):
                same = (uids["f0"] == int(uid[:16], 16)) & (uids["f1"] == int(uid[16:], 16))
                same = same if there is None else same & there
                yield from (f"{shard.path} row {row + n}" for n in np.flatnonzero(same).tolist())
                row += len(uids)
