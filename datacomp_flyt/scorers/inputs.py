"""Embeddings of a metadata file for scorers: array by array, whole or some rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.embeddings import (
    BLOCK_ROWS,
    embedding_widths,
    iter_embeddings,
)
from datacomp_flyt.pool.parquet import ParquetShard

Floats = NDArray[np.float32]


def iter_embedding_blocks(
    shard: ParquetShard,
    arrays: Sequence[str],
    renormalize: bool,
    counts: Counter[str],
    block_rows: int = BLOCK_ROWS,
) -> Iterator[list[Floats]]:
    """The named arrays, [n, width] each, some rows at a time in the order of the metadata.

    Args:
        renormalize: bring rows to length 1; else they are as stored.
        counts: gets rows without a usable embedding, and of another length than 1.

    Yields:
        For each array a float32 view [n, width]; a row that cannot be used is NaN in all of them.

    Raises:
        InputError: see `pool.embeddings.embedding_widths`; or the file turns out to be damaged.
    """
    ends = np.cumsum(embedding_widths(shard, arrays))[:-1]
    for block in iter_embeddings(shard, arrays, block_rows, renormalize, counts):
        yield np.split(block, ends, axis=1)


def read_embeddings(
    shard: ParquetShard, arrays: Sequence[str], renormalize: bool, counts: Counter[str]
) -> list[Floats]:
    """The named arrays whole: for each a float32 array [rows, width]. See above."""
    wholes = [
        np.empty((shard.num_rows, width), np.float32) for width in embedding_widths(shard, arrays)
    ]
    row = 0
    for blocks in iter_embedding_blocks(shard, arrays, renormalize, counts):
        for whole, block in zip(wholes, blocks, strict=True):
            whole[row : row + len(block)] = block
        row += len(blocks[0])
    return wholes
