"""Parquet files that have the same columns, read row by row for sorting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datacomp_flyt.engines.progress import shown
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import check_npz
from datacomp_flyt.pool.score_values import to_floats
from datacomp_flyt.pool.uid_slices import Rows


@dataclass(frozen=True)
class Group:
    """Files, and columns that are in all of them.

    Attributes:
        name: what to call the files in messages: their flag and folder.
        shards: the files.
        columns: dtypes by name.
        is_pool: they are the metadata, beside which npz files may be.
    """

    name: str
    shards: tuple[ParquetShard, ...]
    columns: Mapping[str, np.dtype[Any]]
    is_pool: bool = False

    @property
    def num_rows(self) -> int:
        """Of all files together."""
        return sum(shard.num_rows for shard in self.shards)

    def parts(self, rows: int) -> Iterator[Group]:
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
        """All rows, some at a time.

        Raises:
            InputError: a value is no uid, or a number that no float64 equals; a file is damaged; or
                an npz has another number of rows than its parquet.
        """
        for shard in self.shards:
            if self.is_pool:
                check_npz(shard)
            row = 0
            for uids, batch in shard.rows_with_uids(tuple(self.columns)):
                values = {
                    name: to_floats(batch.column(1 + n), dtype, shard.path, name, row).copy()
                    for n, (name, dtype) in enumerate(self.columns.items())
                }
                yield Rows(uids["f0"].copy(), uids["f1"].copy(), values)
                row += len(batch)

    def rows_of(self, uid: str) -> Iterator[str]:
        """Where the rows of a uid are, as people say it; files are read as rows are asked for."""
        for shard in shown(self.shards, f"looking for {uid}", len(self.shards), "file"):
            row = 0
            for rows in Group(self.name, (shard,), {}).batches():
                same = (rows.high == int(uid[:16], 16)) & (rows.low == int(uid[16:], 16))
                yield from (f"{shard.path} row {row + n}" for n in np.flatnonzero(same).tolist())
                row += len(rows)
