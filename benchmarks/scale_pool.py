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
    """Write a pool, shard by shard, in processes.

    Args:
        folder: to make, and to hold nothing else.
        rows: of the pool; of a file, at most 2**20.
        seed: with the number of a shard, names what is in it.
        num_workers: processes.
        compression: of the parquet files.

    Returns:
        bytes of all files.
    """
    folder.mkdir(parents=True)
    starts = range(0, rows, SHARD_ROWS)
    shards = [(number, min(SHARD_ROWS, rows - start)) for number, start in enumerate(starts)]
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
    number, rows = shard
    rng = np.random.default_rng([seed, number])
    uids = rng.integers(0, 2**64 - 1, 2 * rows, np.uint64, endpoint=True).view(UID_DTYPE)
    table = {"uid": encode_uids(uids).cast(pa.string())}
    both = rng.standard_normal(rows, np.float32)  # what the two scores have in common
    for column, mean in zip(COLUMNS, (0.25, 0.2), strict=True):
        scores = rng.standard_normal(rows, np.float32)
        scores += 2 * both
        table[column] = pa.array(scores * np.float32(0.03) + np.float32(mean))
    path = folder / f"{number:08d}.parquet"
    pq.write_table(
        pa.table(table), path, compression=compression, use_dictionary=False, write_statistics=False
    )
    return path.stat().st_size
