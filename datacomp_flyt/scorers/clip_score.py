"""CLIP score: the cosine of a pair's image and text embeddings (Hessel et al., EMNLP 2021)."""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.published import METADATA_COLUMN_OF
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.score_table import column_dtype
from datacomp_flyt.pool.score_values import to_floats
from datacomp_flyt.scorers.base.embedding_blocks import check_one_width, iter_embedding_blocks
from datacomp_flyt.scorers.base.flags import add_renormalize
from datacomp_flyt.scorers.base.scorer import Arrays, MetadataScorer

_PUBLISHED = {"b32": "vit-b-32", "l14": "vit-l-14"}


class ClipScore(MetadataScorer):
    """CLIP score of pairs: DataComp's metadata column, or the cosine of their npz embeddings."""

    def __init__(
        self,
        *,
        arch: str = "b32",
        source: str = "metadata",
        renormalize: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            arch: `b32` or `l14` in the metadata; with npz, the prefix of any two arrays.
            source: `metadata` or `npz`.
            renormalize: scale embeddings to unit norm.
            column: the name of the score; None for the published one.

        Raises:
            InputError: the metadata has no such score.
        """
        if source == "metadata" and (arch not in _PUBLISHED or renormalize):
            raise InputError(
                f"--arch {arch}{' --renormalize' if renormalize else ''}: the metadata has scores "
                f"of {' and '.join(_PUBLISHED)} as they are; add --source npz to make others"
            )
        self.arrays = (f"{arch}_img", f"{arch}_txt") if source == "npz" else ()
        self.arch, self.source, self.renormalize = arch, source, renormalize
        self.columns = (column or _PUBLISHED.get(arch, f"clip_score_{arch}"),)
        self.settings = {"arch": arch, "source": source, "renormalize": renormalize}

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--arch", default="b32", help="b32 (default), l14, or with --source npz any prefix"
        )
        add_renormalize(parser)
        parser.add_argument(
            "--source",
            choices=("metadata", "npz"),
            default="metadata",
            help="DataComp's column (default), or the product of the npz's embeddings",
        )

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        if self.source == "metadata":
            return self._read_column(shard)
        check_one_width(shard, self.arrays)
        blocks = iter_embedding_blocks(shard, self.arrays, self.renormalize, counts)
        parts = [np.einsum("ij,ij->i", images, texts) for images, texts in blocks]
        return np.concatenate(parts) if parts else np.empty(0)

    def _read_column(self, shard: ParquetShard) -> NDArray[np.floating]:
        column = METADATA_COLUMN_OF[_PUBLISHED[self.arch]]
        if column not in shard.types:
            raise InputError(
                f"{shard.path} has no column {column!r}: use --source npz, or `datacomp-flyt embed`"
            )
        dtype, row = column_dtype([shard], column), 0
        parts = [np.empty(0, dtype)]
        for batch in shard.batches(column):
            parts.append(to_floats(batch, dtype, shard.path, column, row))
            row += len(batch)
        return np.concatenate(parts)
