"""Features of the scoring model that come from tables: score columns or embeddings, by uid.

Legend: M examples, k features of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.mixing.published import METADATA_COLUMN_OF
from datacomp_flyt.mixing.standardization import mean_and_std
from datacomp_flyt.pool.embeddings import embedding_widths, iter_embeddings
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.pool import Pool, read_pool, union_of_uids
from datacomp_flyt.pool.score_values import to_float32
from datacomp_flyt.pool.uid_search import UidIndex
from datacomp_flyt.threads import map_threads


@dataclass(frozen=True)
class UidFeatures(UidIndex):
    """Features by uid.

    Attributes:
        values: features, float32 [M, k].
    """

    values: NDArray[np.float32]


@dataclass(frozen=True)
class ScoreFeatures:
    """Score columns as features, not standardised; the scoring model does that.

    Attributes:
        features: the columns [M, k].
        mean, std: mean and standard deviation of each column over all M examples, float64 [k].
    """

    features: UidFeatures
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def score_features(
    scores_dir: str | None,
    columns: Sequence[str],
    num_workers: int,
    metadata_dir: str | None = None,
    allow_partial: bool = False,
    drop_nonfinite: bool = False,
    progress: bool = True,
) -> ScoreFeatures:
    """Read columns of score tables, and of DataComp metadata under their published names.

    Args:
        scores_dir: folder of parquet files with `uid` and scores, searched recursively; None for
            no score tables.
        columns: names of the columns, in the order of the scoring model.
        num_workers: number of threads.
        metadata_dir: DataComp metadata, whose rows are the pool. Without it, the pool is the uids
            of all files that have one of the columns.
        allow_partial: leave out examples that lack one of the scores.
        drop_nonfinite: leave out examples with a score that is NaN, infinite or null.
        progress: print the files that columns are read from, and show bars on a terminal.

    Raises:
        InputError: a folder or column does not exist; a column is named twice, is not numeric or is
            constant; a uid has two scores; a score is missing or not finite and that is not
            allowed; or no example is left.
    """
    if metadata_dir is not None:
        pool = read_pool(metadata_dir, num_workers, progress)
    elif scores_dir is not None:
        pool = _pool_of_tables(scores_dir, columns, num_workers)
    else:
        raise InputError("score columns come from --scores_dir or --metadata_dir: give one")
    table = Columns(
        pool, metadata_dir, scores_dir, num_workers, allow_partial, drop_nonfinite, progress
    )
    table.find(columns, otherwise="name fewer columns")
    values = np.empty((len(pool), len(columns)), np.float32)
    for index, column in enumerate(table.read(columns)):
        values[:, index] = to_float32(column, f"column {columns[index]!r}")
    features = _finite(pool, values, f"all of {', '.join(columns)}")
    statistics = [
        mean_and_std(features.values[:, index], column, num_workers)
        for index, column in enumerate(columns)
    ]
    mean, std = np.array(statistics, np.float64).T
    return ScoreFeatures(features, mean, std)


def embedding_features(
    metadata_dir: str,
    arrays: Sequence[str] = ("b32_img", "b32_txt"),
    num_workers: int = 1,
    drop_nonfinite: bool = False,
    progress: bool = True,
) -> UidFeatures:
    """Read embeddings from the npz files beside DataComp metadata, and concatenate them.

    All embeddings are held in memory: 4 kB for each example with two embeddings of width 512.

    Args:
        metadata_dir: DataComp metadata with npz files.
        arrays: names of arrays in the npz files; the embeddings of each are scaled to unit norm.
        num_workers: number of threads.
        drop_nonfinite: leave out examples with an embedding that is not finite or all 0.
        progress: show bars on a terminal.

    Raises:
        InputError: a folder, npz file or array does not exist; an array has different widths in
            different files; an embedding is not finite or all 0, and that is not allowed.
    """
    pool = read_pool(metadata_dir, num_workers, progress)
    widths = embedding_widths(pool.shards[0], arrays)
    values = np.empty((len(pool), sum(widths)), np.float32)

    def read_shard(shard_index: int) -> None:
        shard, positions = pool.shards[shard_index], pool.positions[shard_index]
        if (shard_widths := embedding_widths(shard, arrays)) != widths:
            raise InputError(
                f"{shard.npz} has embeddings {list(shard_widths)} wide and "
                f"{pool.shards[0].npz} {list(widths)}: take a pool from one source"
            )
        row = 0
        for block in iter_embeddings(shard, arrays):
            rows = positions[row : row + len(block)]
            inside = rows >= 0  # rows whose download failed are not in the pool
            bad = np.flatnonzero(inside & np.isnan(block[:, 0]))
            if len(bad) and not drop_nonfinite:
                raise InputError(
                    f"{shard.npz} row {row + int(bad[0])} has an embedding that is not "
                    "finite or all 0: mend it, or leave such examples out with --drop_nonfinite"
                )
            values[rows[inside]] = block[inside]
            row += len(block)

    text = "reading embeddings" if progress else None
    map_threads(read_shard, range(len(pool.shards)), num_workers, text)
    return _finite(pool, values, f"a usable {' and '.join(arrays)}")


def _finite(pool: Pool, values: NDArray[np.float32], noun: str) -> UidFeatures:
    """Keep the examples whose features are all finite."""
    usable = np.isfinite(values).all(axis=1)
    if usable.all():
        return UidFeatures(pool.high, pool.low, values)
    if not usable.any():
        raise InputError(f"no example has {noun}: give tables of one pool")
    return UidFeatures(pool.high[usable], pool.low[usable], values[usable])


def _pool_of_tables(scores_dir: str, columns: Sequence[str], num_workers: int) -> Pool:
    """Return the uids of the score tables that have one of the columns; of all if none has."""
    shards = open_shards(scores_dir, "--scores_dir", num_workers, recursive=True)
    names = {*columns, *(METADATA_COLUMN_OF.get(column, column) for column in columns)}
    shards = [shard for shard in shards if not shard.types.keys().isdisjoint(names)] or shards
    return union_of_uids(shards, f"--scores_dir {scores_dir}", num_workers)
