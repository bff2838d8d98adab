"""Generates a pool like DataComp's metadata: parquet files of random uids and scores."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import say
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.pool.uids import UID_DTYPE, encode_uids

COLUMNS = ("clip_b32_similarity_score", "clip_l14_similarity_score")
SHARD_ROWS = 1 << 20


def make_pool(folder: Path, rows: int, seed: int, num_workers: int, compression: str) -> int:
    """Write a pool in several processes, with at most 2**20 rows in a file.

    Args:
        folder: the folder to make, for this pool only.
        rows: the number of rows of the pool.
        seed: the seed; with the index of a shard, it decides the content of the shard.
        num_workers: the number of processes.
        compression: the compression of the parquet files.

    Returns:
        the size of all files in bytes.
    """
    folder.mkdir(parents=True)
    starts = range(0, rows, SHARD_ROWS)
    shards = [(index, min(SHARD_ROWS, rows - start)) for index, start in enumerate(starts)]
    make = functools.partial(_maker, folder, seed, compression)
    size = 0
    for done, outcome in enumerate(ProcessEngine(num_workers, "cpu").run(make, shards), 1):
        if outcome.error is not None:
            raise SystemExit(f"generating {folder} failed: {outcome.error}")
        size += int(outcome.result or 0)
        if done % 64 == 0:
            say(f"generated {done} of {len(shards)} files")
    return size


def _maker(folder: Path, seed: int, compression: str, device: str) -> Any:
    return functools.partial(write_shard, folder, seed, compression)


def write_shard(folder: Path, seed: int, compression: str, shard: tuple[int, int]) -> int:
    """Write one shard, given its index and number of rows; return its size in bytes."""
    index, rows = shard
    rng = np.random.default_rng([seed, index])
    uids = rng.integers(0, 2**64 - 1, 2 * rows, np.uint64, endpoint=True).view(UID_DTYPE)
    table = {"uid": encode_uids(uids).cast(pa.string())}
    both = rng.standard_normal(rows, np.float32)  # the common part of the two scores
    for column, mean in zip(COLUMNS, (0.25, 0.2), strict=True):
        scores = rng.standard_normal(rows, np.float32)
        scores += 2 * both
        table[column] = pa.array(scores * np.float32(0.03) + np.float32(mean))
    path = folder / f"{index:08d}.parquet"
    pq.write_table(
        pa.table(table), path, compression=compression, use_dictionary=False, write_statistics=False
    )
    return path.stat().st_size
