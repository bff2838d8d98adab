"""Score columns of a pool that is larger than memory: sorted and joined in files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.mixing.columns import Columns, Source
from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.external_sort.file_group import FileGroup
from datacomp_flyt.pool.external_sort.sorted_files import sort_into_files
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from datacomp_flyt.pool.pool import FilePool
from datacomp_flyt.pool.row_order import Column, RowOrder
from datacomp_flyt.tars.download_keys import DownloadKeys


class FileColumns(Columns):
    """`Columns` whose arrays are in files: an external sort joins them to the pool."""

    def __init__(
        self,
        metadata_dir: str,
        scores_dir: str | None,
        num_workers: int,
        allow_partial: bool,
        drop_nonfinite: bool,
        folder: Path,
        engine: Engine,
        *,
        available: Available | None = None,
        keys: DownloadKeys | None = None,
        lock: bool = False,
    ) -> None:
        """
        Args:
            metadata_dir, scores_dir, num_workers, allow_partial, drop_nonfinite, keys: see
                `Columns`.
            folder: the folder for the sorted files.
            engine: the engine that sorts.
            available: the list of images; rows without an image are left out.
            lock: keep other runs from using the folder while files are sorted; False if the
                caller holds a lock on it.
        """
        shards = open_shards(metadata_dir, "--metadata_dir", num_workers)
        self.in_files = FilePool(shards, available)
        allowed = (allow_partial, drop_nonfinite)
        super().__init__(self.in_files, metadata_dir, scores_dir, num_workers, *allowed, keys=keys)
        for shard in self._files:
            if shard.keys is not None:
                raise InputError(
                    f"{shard.path} has keys of img2dataset in place of uids, which --work_dir does "
                    "not join: write uids beside the scores, or leave --work_dir out"
                )
        self._folder, self._engine, self._lock = folder, engine, lock
        self._sorted: tuple[list[Source], list[NDArray[np.floating]]] | None = None

    def __len__(self) -> int:
        """The number of examples.

        Raises:
            InputError: no column has been read yet.
        """
        if self._sorted is None:
            raise InputError("the examples of --work_dir are counted when columns are first read")
        return len(self.in_files)

    def __bool__(self) -> bool:
        return True

    def read_rows(self, names: Sequence[str]) -> Iterator[Column]:
        """Yield columns in the order of the pool, once all are sorted."""
        sources = self._sources(names)
        if self._sorted is None or self._sorted[0] != sources:
            with lock_outputs(self._folder) if self._lock else contextlib.nullcontext():
                self._sorted = sources, self._sort(sources)
        order = RowOrder(len(self.in_files))
        for values in self._sorted[1]:
            yield Column(values, order)

    def _sort(self, sources: Sequence[Source]) -> list[NDArray[np.floating]]:
        """Sort the uids of the pool and these columns; return the columns."""
        name, shards = self._tables[-1].name, tuple(self.in_files.shards)
        metadata = FileGroup(name, shards, {}, is_pool=True, available=self.in_files.available)
        groups = {(pool := self._key(name, shards)): metadata}
        keys = []
        for table, column in sources:
            files = table.files_of(column)
            key = self._key(table.name, files)
            template = metadata if table is self._tables[-1] else FileGroup("", (), {})
            group = groups.setdefault(key, replace(template, name=table.name, shards=files))
            groups[key] = replace(group, columns={**group.columns, column: table.dtype(column)})
            keys.append((key, column))
        # the job on disk is the same for any order of the columns
        groups = {pool: groups.pop(pool), **dict(sorted(groups.items()))}
        arrays = sort_into_files(
            list(groups.values()), self._folder, self._engine, self._allow_partial,
            self.drop_nonfinite,
        )  # fmt: skip
        self.in_files.uids = arrays.uids
        index_of = {key: index for index, key in enumerate(groups)}
        return [arrays.columns[index_of[key], column] for key, column in keys]

    @staticmethod
    def _key(name: str, files: Sequence[ParquetShard]) -> tuple[str, ...]:
        return (name, *(file.path for file in files))
