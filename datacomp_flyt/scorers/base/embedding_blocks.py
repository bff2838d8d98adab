"""Reads the embeddings of a metadata file for scorers: array by array, whole or in blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.embeddings import embedding_widths, iter_embeddings
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.threads import map_threads

Floats = NDArray[np.float32]


def iter_embedding_blocks(
    shard: ParquetShard,
    arrays: Sequence[str],
    renormalize: bool,
    counts: Counter[str],
) -> Iterator[list[Floats]]:
    """Read the named arrays, [n, width] each, block by block in the order of the metadata.

    Args:
        shard: the metadata file.
        arrays: names of npz arrays.
        renormalize: scale rows to unit norm; otherwise they are as stored.
        counts: receives the numbers of rows that cannot be used or are not of unit norm.

    Yields:
        For each array a float32 view [n, width]; a row that cannot be used is NaN in all of them.

    Raises:
        InputError: see `pool.embeddings.embedding_widths`; or the file is damaged.
    """
    ends = np.cumsum(embedding_widths(shard, arrays))[:-1]
    for block in iter_embeddings(shard, arrays, normalize=renormalize, counts=counts):
        yield np.split(block, ends, axis=1)


def read_embeddings(
    shard: ParquetShard, arrays: Sequence[str], renormalize: bool, counts: Counter[str]
) -> list[Floats]:
    """Read the named arrays as a whole, [rows, width] each; see `iter_embedding_blocks`."""
    wholes = [
        np.empty((shard.num_rows, width), np.float32) for width in embedding_widths(shard, arrays)
    ]
    row = 0
    for blocks in iter_embedding_blocks(shard, arrays, renormalize, counts):
        for whole, block in zip(wholes, blocks, strict=True):
            whole[row : row + len(block)] = block
        row += len(blocks[0])
    return wholes


def check_one_width(shard: ParquetShard, arrays: Sequence[str]) -> None:
    """Raise InputError if a file's images and texts are not of one width, so not of one model."""
    widths = embedding_widths(shard, arrays)
    if len(set(widths)) > 1:
        sizes = " and ".join(f"{a} of width {w}" for a, w in zip(arrays, widths, strict=True))
        raise InputError(f"{shard.npz} has {sizes}: the two are of one CLIP model")


def check_widths(shards: Sequence[ParquetShard], arrays: Sequence[str], num_workers: int) -> None:
    """Raise InputError if two files have embeddings of different widths.

    Files that cannot be read are left to the workers, which report them.
    """

    def widths(shard: ParquetShard) -> tuple[int, ...] | None:
        try:
            return embedding_widths(shard, arrays)
        except InputError:
            return None

    first: tuple[ParquetShard, tuple[int, ...]] | None = None
    for shard, its_widths in zip(shards, map_threads(widths, shards, num_workers), strict=True):
        if its_widths is None:
            continue
        first = first or (shard, its_widths)
        if its_widths != first[1]:
            raise InputError(
                f"{shard.npz} has {', '.join(arrays)} of width "
                f"{', '.join(map(str, its_widths))} and {first[0].npz} of "
                f"{', '.join(map(str, first[1]))}: a pool's embeddings are of one model"
            )
