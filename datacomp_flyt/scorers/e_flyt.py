"""E-FLYT scores of a pool, from the embeddings beside its metadata."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from datacomp_flyt.engines.threads import map_threads
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.embeddings import embedding_widths, iter_embeddings, npz_path
from datacomp_flyt.pool.pool import Pool
from datacomp_flyt.scorers.glu_head import GluHead


def check_features(head: GluHead, source: str) -> tuple[str, ...]:
    """The npz arrays that a head was trained on.

    Args:
        source: where the head is from, for the message.

    Raises:
        InputError: its features were made from images, as those of the published `flyt.pt` were:
            open_clip loads OpenAI's weights into its ViT-B-32 configuration, with GELU where
            OpenAI's model, and so the pool's npz, has QuickGELU.
    """
    if head.arrays is None:
        raise InputError(
            f"{source} was trained on features that open_clip's ViT-B-32 (GELU) makes from images, "
            "and the pool's npz holds others (QuickGELU): train a head on npz embeddings, or put "
            "scores made from images into --scores_dir and use --name scs --score FLYT"
        )
    return head.arrays


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
        head: trained on npz arrays.
        num_workers: threads, each with a metadata file of its own to read and to score on one
            core; they do not change the result.
        drop_nonfinite: accept embeddings that are not finite or all zero.
        source: what to call the head in messages.

    Returns:
        float32 array [M] in the order of the pool; NaN for dropped examples.

    Raises:
        InputError: see `check_features` and `iter_embeddings`; arrays of another width than the
            head's; embeddings that are not finite or all zero; weights so large that a score is
            not finite.
    """
    arrays = check_features(head, source)
    files = list(zip(pool.shards, pool.positions, strict=True))
    for shard, widths in zip(
        pool.shards,
        map_threads(lambda shard: embedding_widths(shard, arrays), pool.shards, num_workers),
        strict=True,
    ):
        if sum(widths) != head.width:
            raise InputError(
                f"{npz_path(shard)} has {' + '.join(map(str, widths))} columns in "
                f"{', '.join(arrays)} and {source} takes {head.width}: take a pool with the "
                "embeddings that it was trained on"
            )
    scores = np.full(len(pool), np.nan, np.float32)

    def score(number: int) -> tuple[int, int]:
        """Number of rows without a usable embedding, and the first of them."""
        shard, places = files[number]
        row, wrong, first = 0, 0, -1
        for block in iter_embeddings(shard, arrays):
            values = head.scores(block)
            unusable = np.flatnonzero(~np.isfinite(values))
            if len(unusable):
                overflown = unusable[np.isfinite(block[unusable, 0])]
                if len(overflown):
                    raise InputError(
                        f"{source} gives {npz_path(shard)} row {row + int(overflown[0])} a score "
                        "that is not finite: its weights are too large, so train it again"
                    )
                first = first if wrong else row + int(unusable[0])
                wrong += len(unusable)
            scores[places[row : row + len(block)]] = values
            row += len(block)
        return wrong, first

    # OpenBLAS lets one caller in at a time, unless its products stay on the caller's thread
    with threadpool_limits(1, "blas"):
        found = map_threads(
            score, range(len(files)), num_workers, "scoring embeddings" if progress else None
        )
    wrong = sum(count for count, _ in found)
    if wrong and not drop_nonfinite:
        number = next(number for number, (count, _) in enumerate(found) if count)
        raise InputError(
            f"embeddings of {wrong:,} examples are not finite or all zero, the first in "
            f"{npz_path(files[number][0])} row {found[number][1]}: mend them, or leave those "
            "examples out with --drop_nonfinite"
        )
    return scores
