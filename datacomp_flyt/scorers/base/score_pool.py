"""Score a pool shard by shard, skip finished shards, and write each table whole or not at all.

In `SCORES_DIR/COLUMN/`, named after the scorer's first column, each shard gets a parquet file of
its own when it is finished, and `_settings.json` keeps the settings. Only this process writes, so a
job may be killed at any moment, and resumes when run again. The state of a `PoolScorer` is kept in
`_passes/` between its passes. Readers of the folder ignore both names.
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
from datacomp_flyt.engines.until_usable import UntilUsable, Usable, has_rows
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.files.settings_file import check_settings
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.scorers.base.passes import Passes
from datacomp_flyt.scorers.base.scorer import Arrays, PoolScorer, PoolState, ScoredShard, Scorer

Keep = Callable[[str, Any], int]
"""Keeps the result of a shard, given its name; returns its number of rows."""
Run = Callable[[TaskFactory, Mapping[str, Any], Keep, str], dict[str, Exception]]
"""Runs a function over shards, keeps the results and returns the errors, by name of the shard. The
last argument labels the progress bar."""

_RESULTS = ("*.parquet", *Passes.FILES)


@dataclass
class ScoreReport:
    """The outcome of a scoring job.

    Attributes:
        folder: the folder of the score tables.
        columns: the names of the score columns.
        failed: the last error of each shard that was not finished, by the shard's name.
        counts: number of examples per remark, such as a reason for a missing score, in this run.
        num_scored: shards that this run scored.
        num_finished_before: shards that were finished before.
        num_examples: examples in the shards of this run.
        num_without_score: those examples with a NaN.
        needs_all: whether nothing was scored, because the pool statistic needs the failed shards.
    """

    folder: Path
    columns: tuple[str, ...]
    failed: dict[str, Exception] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    num_scored: int = 0
    num_finished_before: int = 0
    num_examples: int = 0
    num_without_score: int = 0
    needs_all: bool = False


def score_pool(
    scorer: Scorer,
    name: str,
    shards: Mapping[str, Any],
    scores_dir: Path,
    engine: Engine,
    *,
    retries: int = 2,
    num_rows: Mapping[str, int] | None = None,
    source: str = "",
    check: Callable[[str], None] = lambda shard: None,
) -> ScoreReport:
    """Score the shards that are not finished.

    Args:
        name: the name of the scorer, for the settings file and the progress bar.
        shards: the arguments of the scorer's `score`, by name of the shard.
        scores_dir: the folder that gets a sub-folder named after the scorer's first column.
        retries: the number of retries of a shard that failed.
        num_rows: the rows of each shard, if known.
        source: the location of the shards; kept in the settings because two pools may use the same
            shard names.
        check: called with a shard's name before its result is kept; raises InputError if the
            shard has changed since the job began.

    Raises:
        InputError: the folder holds results made under other settings; `load` or `check` raised it;
            or no row of any shard has a score.
    """
    folder = scores_dir / scorer.columns[0]
    settings = _settings(scorer, name, shards, num_rows, source)
    check_settings(folder, settings, "choose another --scores_dir or --column", _RESULTS)
    remove_unfinished(folder)
    left = {shard: shards[shard] for shard in sorted(shards) if not _done(scorer, folder, shard)}
    report = ScoreReport(folder, scorer.columns, num_finished_before=len(shards) - len(left))
    run = _make_run(engine, retries, num_rows, check)
    state = PoolState({}, {}, final=True)
    if left and isinstance(scorer, PoolScorer):
        state, report.failed = _run_passes(scorer, name, folder, shards, run)
        if report.failed:
            report.needs_all = True
            return report

    def write(shard: str, scored: ScoredShard) -> int:
        _write_scores(folder / f"{shard}.parquet", scored, scorer.columns)
        report.counts.update(scored.counts)
        report.num_scored += 1
        report.num_examples += len(scored.uids)
        report.num_without_score += int(np.isnan(scored.values).any(axis=1).sum())
        return len(scored.uids)

    items = {shard: (item, state.by_shard.get(shard, {})) for shard, item in left.items()}
    any_finished, where = report.num_finished_before > 0, f"--scorer {name}"
    keep = UntilUsable(write, _usable, any_finished, where, usable="with a score")
    report.failed = run(_Work(scorer, "score", state.common), items, keep, name)
    if not report.failed:
        keep.finish()
    if isinstance(scorer, PoolScorer) and not report.failed:
        Passes(folder).remove()
    return report


def _settings(
    scorer: Scorer,
    name: str,
    shards: Mapping[str, Any],
    num_rows: Mapping[str, int] | None,
    source: str,
) -> dict[str, Any]:
    """Return the settings that the scores of a folder have in common."""
    settings = {"scorer": name, "columns": scorer.columns, "pool": source, **scorer.settings}
    if isinstance(scorer, PoolScorer):  # its statistic is of these shards and no others
        known = json.dumps(dict(num_rows or {}) or sorted(shards), sort_keys=True)
        settings["shards"] = hashlib.sha256(known.encode()).hexdigest()
    return settings


def _make_run(
    engine: Engine,
    retries: int,
    num_rows: Mapping[str, int] | None,
    check: Callable[[str], None],
) -> Run:
    """Return a function that runs a task over shards, and keeps results of unchanged ones."""

    def run(
        make: TaskFactory, items: Mapping[str, Any], keep: Keep, label: str
    ) -> dict[str, Exception]:
        def keep_unless_changed(shard: str, result: Any) -> int:
            check(shard)
            return keep(shard, result)

        return run_shards(engine, make, items, keep_unless_changed, retries, label, num_rows)

    return run


def _done(scorer: Scorer, folder: Path, shard: str) -> bool:
    path = folder / f"{shard}.parquet"
    # for pool scorers an empty shard counts as done; others score it again
    return path.exists() and (isinstance(scorer, PoolScorer) or has_rows(path))


def _run_passes(
    scorer: PoolScorer, name: str, folder: Path, shards: Mapping[str, Any], run: Run
) -> tuple[PoolState, dict[str, Exception]]:
    """Run the passes before the last one, and return the final state or the errors."""
    passes = Passes(folder)
    state = passes.last_state() or PoolState({}, {}, final=False)
    while not state.final:
        summarize = _Work(scorer, "summarize", state.common)
        todo = passes.unfinished(shards, state) if scorer.summarizes else {}
        failed = run(summarize, todo, passes.write_summary, f"{name}: {passes.title}")
        if failed:
            return state, failed
        with threadpool_limits(1, "blas"):  # sums in one order on any number of cores
            state = passes.reduce(scorer, sorted(shards))
    return state, {}


def _usable(scored: ScoredShard) -> Usable:
    usable = np.atleast_1d(np.isfinite(scored.values).any(axis=1))
    return Usable(len(usable), int(np.count_nonzero(usable)), scored.counts)


@dataclass(frozen=True)
class _Work:
    """The task of a worker: a scorer, the name of its method to call, and the common state."""

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
