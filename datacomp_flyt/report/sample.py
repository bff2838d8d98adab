"""Samples a pool: the examples with a low hash of (seed, uid), whatever the order of the rows.

The hash selects the same examples from the metadata, from score tables in another order and from
subsets. Therefore memory holds only one index for each row of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.join_errors import repeated_in_pool
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import Pool, describe_left_out
from datacomp_flyt.pool.uid_randomness import random_bits, stream_keys
from datacomp_flyt.pool.uid_search import find_uids, position_dtype
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.streams import say
from datacomp_flyt.threads import map_threads

# Of equal scores, Soft Cap Sampling draws first those with high bits in the stream of its seed. A
# sample by the same bits would have too few of the drawn examples, so it has a stream of its own.
_STREAM = 0x7265706F7274
_CAPTION = "text"


@dataclass(frozen=True)
class SampleRule:
    """The rule that samples about `max_rows` of `pool_size` uids, chosen by `seed`."""

    max_rows: int
    pool_size: int
    seed: int

    @property
    def whole(self) -> bool:
        """True if the sample is the whole pool."""
        return self.max_rows >= self.pool_size

    def takes(self, uids: NDArray[np.void]) -> NDArray[np.bool_]:
        """Return whether each of these uids [n] is in the sample."""
        if self.whole:
            return np.ones(len(uids), np.bool_)
        bits = random_bits(stream_keys(np.ascontiguousarray(uids), self.seed ^ _STREAM), 0)
        return bits < np.uint64((self.max_rows << 64) // self.pool_size)


@dataclass(frozen=True)
class PoolSample:
    """Examples of a pool: a sample, and others that were requested by uid.

    Attributes:
        rule: the rule of the sample.
        pool: the examples [n] in the order of their uids; its files have position -1 for rows that
            were not read.
        chosen: whether each example is in the sample [n].
        captions: the captions [n], or None if a metadata file has no column of captions.
    """

    rule: SampleRule
    pool: Pool
    chosen: NDArray[np.bool_]
    captions: NDArray[np.object_] | None

    def __len__(self) -> int:
        return int(np.count_nonzero(self.chosen))


def read_sample(
    shards: list[ParquetShard],
    max_rows: int,
    seed: int,
    num_workers: int,
    also: NDArray[np.void] | None = None,
) -> PoolSample:
    """Read the sampled examples of a pool and their captions.

    Args:
        shards: the pool's metadata files.
        max_rows: the approximate number of examples; a pool that is no larger is read whole.
        seed: the seed of the sample.
        num_workers: threads.
        also: other uids to read, sorted, without repeats; uids that the pool lacks are left out.

    Raises:
        InputError: a uid is invalid, a sampled uid is in the pool twice, a file is damaged, or the
            sample is empty.
    """
    pool_size = sum(map(_num_in_pool, shards))
    name = "--metadata_dir"
    if left_out := describe_left_out(name, shards, pool_size, None):
        say(left_out)
    rule = SampleRule(max_rows, pool_size, seed)
    extra = np.empty(0, UID_DTYPE) if also is None else also
    extra_high, extra_low = extra["f0"].copy(), extra["f1"].copy()
    with_captions = all(_has_captions(shard) for shard in shards)

    def read(
        shard: ParquetShard,
    ) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.object_]]:
        row, uids, rows = 0, [np.empty(0, UID_DTYPE)], [np.empty(0, np.int64)]
        for part, _, in_pool in shard.pool_rows():
            selected = rule.takes(part)
            if len(extra) and not rule.whole:
                selected |= find_uids(extra_high, extra_low, part) >= 0
            indices = np.flatnonzero(selected if in_pool is None else selected & in_pool)
            uids.append(part[indices])
            rows.append(indices + row)
            row += len(part)
        rows_read = np.concatenate(rows)
        return np.concatenate(uids), rows_read, _captions(shard, rows_read, with_captions)

    parts = map_threads(read, shards, num_workers, "sampling the pool")
    pa.default_memory_pool().release_unused()
    uids = np.concatenate([part[0] for part in parts])
    order = np.lexsort((uids["f1"], uids["f0"]))
    uids = uids[order]
    twice = np.flatnonzero(uids[1:] == uids[:-1])
    if len(twice):
        shard_of_row = np.repeat(np.arange(len(shards)), [len(part[0]) for part in parts])
        files = [shards[index].path for index in shard_of_row[order[twice[0] : twice[0] + 2]]]
        raise repeated_in_pool(format_uid(uids[twice[0]]), " and ".join(sorted(files)), len(twice))
    if not len(uids):
        raise InputError("the sample of the pool holds no example: give a larger --max_rows")
    pool = Pool(uids["f0"].copy(), uids["f1"].copy(), shards, _positions(shards, parts, order))
    captions = np.concatenate([part[2] for part in parts])[order] if with_captions else None
    return PoolSample(rule, pool, rule.takes(uids), captions)


def _num_in_pool(shard: ParquetShard) -> int:
    in_pool = shard.rows_in_pool()
    return shard.num_rows if in_pool is None else int(np.count_nonzero(in_pool))


def _positions(
    shards: list[ParquetShard],
    parts: list[tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.object_]]],
    order: NDArray[np.signedinteger],
) -> list[NDArray[np.signedinteger]]:
    """Return for each file the positions of its rows in the sorted sample; -1 for other rows."""
    dtype = position_dtype(len(order))
    rank = np.empty(len(order), dtype)
    rank[order] = np.arange(len(order), dtype=dtype)
    positions, start = [], 0
    for shard, (uids, rows, _) in zip(shards, parts, strict=True):
        of_shard: NDArray[np.signedinteger] = np.full(shard.num_rows, -1, dtype)
        of_shard[rows] = rank[start : start + len(uids)]
        positions.append(of_shard)
        start += len(uids)
    return positions


def _has_captions(shard: ParquetShard) -> bool:
    kind = shard.types.get(_CAPTION)
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _captions(
    shard: ParquetShard, rows: NDArray[np.int64], with_captions: bool
) -> NDArray[np.object_]:
    """Read the captions of rows, given in ascending order; null becomes ""."""
    captions = np.full(len(rows), "", np.object_)
    if not with_captions or not len(rows):
        return captions
    start, done = 0, 0
    for batch in shard.batches(_CAPTION):
        end = int(np.searchsorted(rows, start + len(batch)))
        try:
            texts = batch.take(pa.array(rows[done:end] - start)).to_pylist()
        except UnicodeDecodeError as error:  # Arrow decodes text only here
            raise InputError(
                f"{shard.path} has captions in {_CAPTION!r} that are not UTF-8 ({error}): write it "
                "again"
            ) from None
        captions[done:end] = [text or "" for text in texts]
        start, done = start + len(batch), end
    return captions
