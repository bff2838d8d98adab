"""E-FLYT scores of a pool, from the embeddings beside its metadata."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.pool.embeddings import embedding_widths, iter_embeddings
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import Pool
from datacomp_flyt.scorers.base.scorer import Arrays, MetadataScorer
from datacomp_flyt.scorers.e_flyt.glu_head import GluHead
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head
from datacomp_flyt.threads import map_threads

COLUMN = "FLYT"


def check_features(head: GluHead, source: str) -> tuple[str, ...]:
    """Return the names of the npz arrays that a head was trained on.

    Args:
        source: the flag and file of the head, for the message.

    Raises:
        InputError: its features were made from images, as those of the published `flyt.pt` were:
            open_clip loads OpenAI's weights into its ViT-B-32 configuration, with GELU where
            OpenAI's model, and so the pool's npz, has QuickGELU.
    """
    if head.arrays is None:
        raise InputError(
            f"{source} was trained on features that open_clip's ViT-B-32 (GELU) makes from images, "
            "and the pool's npz holds others (QuickGELU): train a head on npz embeddings, or make "
            "scores from images by `datacomp-flyt score --scorer e_flyt --shards_dir TARS` and use "
            "--name scs --column FLYT"
        )
    return head.arrays


def check_width(head: GluHead, shard: ParquetShard, source: str) -> None:
    """Raise InputError unless the embeddings of a file are as wide as the features of a head."""
    arrays = check_features(head, source)
    widths = embedding_widths(shard, arrays)
    if sum(widths) != head.width:
        raise InputError(
            f"{shard.npz} has {' + '.join(map(str, widths))} columns in "
            f"{', '.join(arrays)} and {source} takes {head.width}: take a pool with the "
            "embeddings that it was trained on"
        )


def scores_of_shard(
    head: GluHead, shard: ParquetShard, source: str, counts: Counter[str] | None = None
) -> NDArray[np.float32]:
    """Score the rows [n] of a metadata file; NaN for a row without a usable embedding.

    Raises:
        InputError: see `iter_embeddings`; or the weights are so large that a score is not finite.
    """
    scores = np.empty(shard.num_rows, np.float32)
    row = 0
    for block in iter_embeddings(shard, check_features(head, source), counts=counts):
        values = head.scores(block)
        overflown = np.flatnonzero(~np.isfinite(values) & np.isfinite(block[:, 0]))
        if len(overflown):
            raise InputError(
                f"{source} gives {shard.npz} row {row + int(overflown[0])} a score "
                "that is not finite: its weights are too large, so train it again"
            )
        scores[row : row + len(block)] = np.where(np.isfinite(values), values, np.nan)
        row += len(block)
    return scores


class EFlyt(MetadataScorer):
    """E-FLYT scores from npz arrays; `images.EFlytImages` scores from images."""

    def __init__(self, scoring_model: str, *, column: str | None = None) -> None:
        """
        Args:
            scoring_model: the file of a head that was trained on npz arrays.
            column: the name of the score; None for `FLYT`.

        Raises:
            InputError: the file holds no head, or the head's features were made from images.
        """
        self.head = load_glu_head(scoring_model)
        self.source = f"--scoring_model {scoring_model}"
        check_features(self.head, self.source)
        self.arrays = self.head.arrays or ()
        self.columns = (column or COLUMN,)
        self.settings = {"scoring_model": file_digest(scoring_model)}

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        check_width(self.head, shard, self.source)
        return scores_of_shard(self.head, shard, self.source, counts)


def e_flyt_scores(
    head: GluHead,
    pool: Pool,
    num_workers: int = 1,
    drop_nonfinite: bool = False,
    progress: bool = True,
    source: str = "the scoring model",
) -> NDArray[np.float32]:
    """Score every example of a pool.

    Args:
        head: a head that was trained on npz arrays.
        num_workers: threads, each of which reads and scores one metadata file at a time on one
            core; they do not change the result.
        drop_nonfinite: accept embeddings that are not finite or all zero.
        progress: show a progress bar.
        source: the flag and file of the head, for messages.

    Returns:
        float32 array [M] in the order of the pool; NaN for dropped examples.

    Raises:
        InputError: see `check_features` and `iter_embeddings`; or arrays are not as wide as the
            head's features, embeddings are not finite or all zero, or the weights are so large that
            a score is not finite.
    """
    files = list(zip(pool.shards, pool.positions, strict=True))
    check_features(head, source)
    map_threads(lambda shard: check_width(head, shard, source), pool.shards, num_workers)
    scores = np.full(len(pool), np.nan, np.float32)

    def score(file_index: int) -> tuple[int, int]:
        """Score a file; return its number of rows without a usable embedding, and the first one."""
        shard, positions = files[file_index]
        values = scores_of_shard(head, shard, source)
        inside = positions >= 0  # rows whose download failed are not in the pool
        scores[positions[inside]] = values[inside]
        unusable = np.flatnonzero(inside & np.isnan(values))
        return len(unusable), int(unusable[0]) if len(unusable) else -1

    # OpenBLAS lets one caller in at a time, unless its products stay on the caller's thread
    with threadpool_limits(1, "blas"):
        unusable_rows = map_threads(
            score, range(len(files)), num_workers, "scoring embeddings" if progress else None
        )
    wrong = sum(count for count, _ in unusable_rows)
    if wrong and not drop_nonfinite:
        file_index = next(index for index, (count, _) in enumerate(unusable_rows) if count)
        path, row = files[file_index][0].npz, unusable_rows[file_index][1]
        raise InputError(
            f"embeddings of {wrong:,} examples are not finite or all zero, the first in "
            f"{path} row {row}: mend them, or leave those examples "
            "out with --drop_nonfinite"
        )
    return scores
