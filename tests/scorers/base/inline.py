"""An engine without workers, and a scorer's table over a pool of given embeddings."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from datacomp_flyt.engines.engine import Engine, Outcome, TaskFactory
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.scorers.base.score_pool import ScoreReport, score_pool
from datacomp_flyt.scorers.base.scorer import Scorer
from datacomp_flyt.tars.shard_names import shard_name
from tests.conftest import hex_uids
from tests.scorers.base.made import write_npz


class InlineEngine(Engine):
    """Runs everything in this process, one item after the other."""

    def run(
        self, make: TaskFactory, items: Sequence[Any]
    ) -> Generator[Outcome[Any, Any], None, None]:
        torch.set_num_threads(1)
        function = make("cpu")
        for item in items:
            try:
                yield Outcome(item, function(item))
            except Exception as error:
                yield Outcome(item, error=error)


def write_pool(folder: Path, arrays: dict[str, np.ndarray], sizes: Sequence[int]) -> list[str]:
    """Rows of arrays as metadata files of these sizes; the uids, row by row."""
    uids = hex_uids(sum(sizes))
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, size in enumerate(sizes):
        table = pa.table({"uid": pa.array(uids[start : start + size], pa.string())})
        pq.write_table(table, folder / f"shard_{number}.parquet")
        start += size
    write_npz(folder, uids, arrays)
    return uids


def run(
    scorer: Scorer, metadata_dir: Path, scores_dir: Path, engine: Engine | None = None
) -> ScoreReport:
    """Score a pool's metadata files."""
    shards = open_shards(str(metadata_dir), "--metadata_dir", 1)
    named = {shard_name(shard.path): shard for shard in shards}
    return score_pool(scorer, "test", named, scores_dir, engine or InlineEngine())


def read_scores(folder: Path, uids: Sequence[str], column: str) -> np.ndarray:
    """The scores of these uids in the tables of a folder."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        found |= dict(zip(table["uid"].to_pylist(), table[column].to_pylist(), strict=True))
    return np.array([found[uid] for uid in uids], np.float32)


def scores_of(
    scorer: Scorer,
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
    sizes: Sequence[int] | None = None,
) -> np.ndarray:
    """The scores of a pool with these embeddings, row by row."""
    rows = len(next(iter(arrays.values())))
    uids = write_pool(tmp_path / "metadata", arrays, sizes or [rows])
    report = run(scorer, tmp_path / "metadata", tmp_path / "scores")
    assert not report.failed, report.failed
    folder = tmp_path / "scores" / scorer.columns[0]
    return read_scores(folder, uids, scorer.columns[0])


class Killed(BaseException):
    pass


class KilledEngine(InlineEngine):
    """Ends the job when so many shards have been handled, over all passes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def run(self, make, items):
        for outcome in super().run(make, items):
            if not self.left:
                raise Killed
            self.left -= 1
            yield outcome


def table_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
