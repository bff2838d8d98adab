"""A pool whose columns are read in memory and by an external sort."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.mixing import columns_in_files
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.mixing.columns_in_files import FileColumns
from datacomp_flyt.pool.external_sort.sorted_files import SortedFiles, sort_into_files
from datacomp_flyt.pool.pool import read_pool
from tests.conftest import ROWS, make_pool, write_files
from tests.engines.here import Here

POOL = make_pool()
UIDS = POOL.uids
CLIP = "clip_l14_similarity_score"
VALUES = np.random.default_rng(5).normal(0, 3, ROWS)


class Read(NamedTuple):
    """The bytes of the uids, and the dtype and bytes of each column."""

    uids: bytes
    columns: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Job:
    """Metadata and scores in a folder, and a folder for the external sort."""

    folder: Path

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def scores(self) -> Path:
        return self.folder / "scores"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def write(self, parts: int = 3, seed: int | None = 1) -> Job:
        write_files(self.metadata, POOL.metadata, parts, seed)
        write_files(self.scores, {"uid": UIDS, "a": VALUES, "b": VALUES**2}, parts + 1, seed)
        return self

    def in_memory(self, *names: str, partial: bool = False, drop: bool = False) -> Read:
        places = (str(self.metadata), str(self.scores), 1, partial, drop)
        return read(Columns(read_pool(places[0], 1), *places), names)

    def in_files(
        self,
        *names: str,
        partial: bool = False,
        drop: bool = False,
        rows: int = 16,
        engine: Engine | None = None,
    ) -> Read:
        """Read columns by an external sort with buckets of so many rows."""
        places = (str(self.metadata), str(self.scores), 1, partial, drop)
        columns = FileColumns(*places, self.work, engine or Here())
        with pytest.MonkeyPatch.context() as patch:
            small = functools.partial(sort_into_files, rows_at_once=rows)
            patch.setattr(columns_in_files, "sort_into_files", small)
            return read(columns, names)


def read(columns: Columns, names: Sequence[str]) -> Read:
    columns.find(list(dict.fromkeys(names)))
    found = [(values.dtype.name, values.tobytes()) for values in columns.read(names)]
    return Read(columns.uids().tobytes(), found)


def as_read(found: SortedFiles) -> Read:
    """Return the bytes of an external sort, to compare them with `Job.in_memory`."""
    columns = [(values.dtype.name, values.tobytes()) for values in found.columns.values()]
    return Read(found.uids.tobytes(), columns)
