"""A sample of a pool: the examples with a low hash of (seed, uid), whatever their order or files.

A hash of the uid picks the same examples out of the metadata, out of score tables in another order
and out of subsets, so that nothing of the pool's length is kept but one index for each row.
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

# Samplers take their draws from the stream of the same seed. Examples with low bits there are
# the ones that Soft Cap Sampling draws first: no fair sample, so ours has a stream of its own.
_STREAM = 0x7265706F7274
_CAPTION = "text"


@dataclass(frozen=True)
class SampleRule:
    """Which uids are in the sample: about `max_rows` of `pool_size`, chosen by `seed`."""

    max_rows: int
    pool_size: int
    seed: int

    @property
    def whole(self) -> bool:
        """Whether the sample is the whole pool."""
        return self.max_rows >= self.pool_size

    def takes(self, uids: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether each of these uids [n] is in the sample."""
        if self.whole:
            return np.ones(len(uids), np.bool_)
        bits = random_bits(stream_keys(np.ascontiguousarray(uids), self.seed ^ _STREAM), 0)
        return bits < np.uint64((self.max_rows << 64) // self.pool_size)


@dataclass(frozen=True)
class PoolSample:
    """Some examples of a pool.

    Attributes:
        rule: what chose them.
        pool: the examples [n] in the order of their uids; its files have position -1 for others.
        chosen: which of them are the sample [n]; the others were asked for by uid.
        captions: of all [n], or None where the metadata has none.
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
        max_rows: about so many examples; the whole pool if it has no more.
        seed: chooses them, together with their uids.
        num_workers: threads.
        also: uids to read besides, sorted, no uid twice; those that the pool lacks are left out.

    Raises:
        InputError: a value that is no uid, a sampled uid twice in the pool, a damaged file, or no
            example in the sample.
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
            wanted = rule.takes(part)
            if len(extra) and not rule.whole:
                wanted |= find_uids(extra_high, extra_low, part) >= 0
            inside = np.flatnonzero(wanted if in_pool is None else wanted & in_pool)
            uids.append(part[inside])
            rows.append(inside + row)
            row += len(part)
        chosen = np.concatenate(rows)
        return np.concatenate(uids), chosen, _captions(shard, chosen, with_captions)

    parts = map_threads(read, shards, num_workers, "sampling the pool")
    pa.default_memory_pool().release_unused()
    uids = np.concatenate([part[0] for part in parts])
    order = np.lexsort((uids["f1"], uids["f0"]))
    uids = uids[order]
    twice = np.flatnonzero(uids[1:] == uids[:-1])
    if len(twice):
        of_row = np.repeat(np.arange(len(shards)), [len(part[0]) for part in parts])
        files = [shards[number].path for number in of_row[order[twice[0] : twice[0] + 2]]]
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
    """For each file, where its rows are in the sorted sample; -1 for those outside."""
    dtype = position_dtype(len(order))
    rank = np.empty(len(order), dtype)
    rank[order] = np.arange(len(order), dtype=dtype)
    positions, start = [], 0
    for shard, (uids, rows, _) in zip(shards, parts, strict=True):
        places: NDArray[np.signedinteger] = np.full(shard.num_rows, -1, dtype)
        places[rows] = rank[start : start + len(uids)]
        positions.append(places)
        start += len(uids)
    return positions


def _has_captions(shard: ParquetShard) -> bool:
    kind = shard.types.get(_CAPTION)
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _captions(
    shard: ParquetShard, rows: NDArray[np.int64], with_captions: bool
) -> NDArray[np.object_]:
    """Captions of some rows, ascending; "" for null."""
    captions = np.full(len(rows), "", np.object_)
    if not with_captions or not len(rows):
        return captions
    start, done = 0, 0
    for batch in shard.batches(_CAPTION):
        end = int(np.searchsorted(rows, start + len(batch)))
        try:
            texts = batch.take(pa.array(rows[done:end] - start)).to_pylist()
        except UnicodeDecodeError as error:  # Arrow reads it, and looks at it only now
            raise InputError(
                f"{shard.path} has captions in {_CAPTION!r} that are no UTF-8 ({error}): write it "
                "again"
            ) from None
        captions[done:end] = [text or "" for text in texts]
        start, done = start + len(batch), end
    return captions
