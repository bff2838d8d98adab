"""Groups of parquet files with the same columns, which the external sort reads in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.external_sort.uid_buckets import Rows
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import check_npz, in_pool
from datacomp_flyt.pool.score_values import to_floats
from datacomp_flyt.progress import with_progress


@dataclass(frozen=True)
class FileGroup:
    """Parquet files, and the columns to read, which all of them have.

    Attributes:
        name: the name of the files in messages: their flag and folder.
        shards: the files.
        columns: the dtypes of the columns by name.
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
        """The number of rows of all files, including rows that are left out."""
        return sum(shard.num_rows for shard in self.shards)

    def parts(self, rows: int) -> Iterator[FileGroup]:
        """Split the group into groups of consecutive files with at least `rows` rows each."""
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
        """Read all rows in batches, except rows that are left out.

        Raises:
            InputError: a value is no uid, or an integer that float64 cannot hold; a file is
                damaged; or an npz has another number of rows than its parquet.
        """
        for shard in self.shards:
            if self.is_pool:
                check_npz(shard)
            row = 0
            for uids, batch, keep in self._rows(shard):
                values = {
                    name: to_floats(batch.column(1 + n), dtype, shard.path, name, row).copy()
                    for n, (name, dtype) in enumerate(self.columns.items())
                }
                rows = Rows(uids["f0"].copy(), uids["f1"].copy(), values)
                yield rows if keep is None else rows.take(np.flatnonzero(keep))
                row += len(batch)

    def _rows(
        self, shard: ParquetShard
    ) -> Iterator[tuple[NDArray[np.void], pa.RecordBatch, NDArray[np.bool_] | None]]:
        """Read a file in batches: uids, columns, and a mask of the rows to keep; None keeps all."""
        if not self.is_pool:
            for uids, batch in shard.rows_with_uids(tuple(self.columns)):
                yield uids, batch, None
            return
        for uids, batch, downloaded in shard.pool_rows(tuple(self.columns)):
            yield uids, batch, in_pool(uids, downloaded, self.available)

    def rows_of(self, uid: str) -> Iterator[str]:
        """Yield the file and row of each occurrence of a uid, for messages.

        The files are read one by one, until the caller stops.
        """
        for shard in with_progress(self.shards, f"looking for {uid}", len(self.shards), "file"):
            row = 0
            for uids, _, keep in replace(self, columns={})._rows(shard):
                same = (uids["f0"] == int(uid[:16], 16)) & (uids["f1"] == int(uid[16:], 16))
                same = same if keep is None else same & keep
                yield from (f"{shard.path} row {row + n}" for n in np.flatnonzero(same).tolist())
                row += len(uids)
