"""Score a pool shard by shard: what is finished, what is left, and where it is kept.

In `SCORES_DIR/COLUMN/`, with the scorer's first column as the name, each shard gets a parquet file
of its own when it is finished, and `_settings.json` says under which settings. Only this process
writes, each file whole or not at all, so a job may be killed at any moment and goes on from there.
Between the passes of a `PoolScorer` its state is kept in `_passes/`. Readers of the folder pass
over both names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from datacomp_flyt.engines.engine import Engine, TaskFactory
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.files.settings_file import check_settings
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.scorers.base.passes import Passes
from datacomp_flyt.scorers.base.scorer import Arrays, PoolScorer, PoolState, ScoredShard, Scorer
from datacomp_flyt.scorers.base.until_usable import UntilUsable, Usable, has_rows

Keep = Callable[[str, Any], int]
"""Keeps what was made of a shard, given its name; how many rows that is."""


@dataclass
class Report:
    """What a job did.

    Attributes:
        failed: the error of each shard that never came to an end, by name.
        counts: examples by what is to be noted of them, over the shards of this run.
        num_scored: shards scored by this run.
        num_found: shards that were finished before.
        wants_all: nothing was scored, since the failed shards are part of a whole-pool statistic.
        num_examples, num_without_score: of the shards of this run; without are those with a NaN.
    """

    failed: dict[str, Exception] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    num_scored: int = 0
    num_found: int = 0
    num_examples: int = 0
    num_without_score: int = 0
    wants_all: bool = False


def score_pool(
    scorer: Scorer,
    name: str,
    shards: Mapping[str, Any],
    scores_dir: Path,
    engine: Engine,
    retries: int = 2,
    num_rows: Mapping[str, int] | None = None,
    source: str = "",
    check: Callable[[str], None] = lambda shard: None,
) -> Report:
    """Score what is not yet scored.

    Args:
        name: the name of the scorer, for the settings file and the progress bar.
        shards: the arguments of the scorer's `score`, by name of the shard.
        scores_dir: the folder that gets a sub-folder named after the scorer's first column.
        retries: the number of retries of a shard that failed.
        num_rows: the rows of each shard, if known.
        source: the place of the shards, for the settings: two pools may have shards of one name.
        check: called with a shard's name before its result is kept; raises InputError if the
            shard has changed since the job began.

    Raises:
        InputError: the folder holds scores made under other settings; `load` or `check` raised it;
            or no row of any shard has a score.
    """
    folder = scores_dir / scorer.columns[0]
    settings = {"scorer": name, "columns": scorer.columns, "pool": source, **scorer.settings}
    if isinstance(scorer, PoolScorer):  # its statistic is of these shards and no others
        known = json.dumps(dict(num_rows or {}) or sorted(shards), sort_keys=True)
        settings["shards"] = hashlib.sha256(known.encode()).hexdigest()
    check_settings(folder, settings, "choose another --scores_dir or --column")
    remove_unfinished(folder)
    report = Report()
    left = {}
    for shard in sorted(shards):
        path = folder / f"{shard}.parquet"
        # a statistic of the whole pool is not made again for a shard without rows
        if path.exists() and (isinstance(scorer, PoolScorer) or has_rows(path)):
            report.num_found += 1
        else:
            left[shard] = shards[shard]

    def run(
        make: TaskFactory, items: Mapping[str, Any], keep: Keep, label: str
    ) -> dict[str, Exception]:
        def keep_unless_changed(shard: str, result: Any) -> int:
            check(shard)
            return keep(shard, result)

        return run_shards(engine, make, items, keep_unless_changed, retries, label, num_rows)

    state = PoolState({}, {}, final=True)
    if left and isinstance(scorer, PoolScorer):
        passes = Passes(folder)
        state = passes.last_state() or PoolState({}, {}, final=False)
        while not state.final:
            summarize = _Work(scorer, "summarize", state.common)
            todo = passes.unfinished(shards, state) if scorer.summarizes else {}
            failed = run(summarize, todo, passes.write_summary, f"{name}: {passes.title}")
            if failed:
                return Report(failed, num_found=report.num_found, wants_all=True)
            with threadpool_limits(1, "blas"):  # sums in one order on any number of cores
                state = passes.reduce(scorer, sorted(shards))

    def write(shard: str, scored: ScoredShard) -> int:
        _write_scores(folder / f"{shard}.parquet", scored, scorer.columns)
        report.counts.update(scored.counts)
        report.num_scored += 1
        report.num_examples += len(scored.uids)
        report.num_without_score += int(np.isnan(scored.values).any(axis=1).sum())
        return len(scored.uids)

    items = {shard: (item, state.by_shard.get(shard, {})) for shard, item in left.items()}
    keep = UntilUsable(write, _usable, report.num_found > 0, f"--scorer {name}")
    report.failed = run(_Work(scorer, "score", state.common), items, keep, name)
    if not report.failed:
        keep.finish()
    if isinstance(scorer, PoolScorer) and not report.failed:
        Passes(folder).remove()
    return report


def _usable(scored: ScoredShard) -> Usable:
    usable = np.atleast_1d(np.isfinite(scored.values).any(axis=1))
    return Usable(len(usable), int(np.count_nonzero(usable)), scored.counts)


@dataclass(frozen=True)
class _Work:
    """What a worker is sent: the scorer, which of its methods to call, and the common state."""

    scorer: Scorer
    method: str
    common: Arrays

    def __call__(self, device: str) -> Any:
        self.scorer.load(device)
        call = getattr(self.scorer, self.method)
        return lambda item: call(item[1][0], {**self.common, **item[1][1]})


def _write_scores(path: Path, scored: ScoredShard, columns: tuple[str, ...]) -> None:
    arrays = [encode_uids(scored.uids), *(pa.array(column) for column in scored.values.T.copy())]
    schema = pa.schema([("uid", pa.large_string()), *((name, pa.float32()) for name in columns)])
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)
