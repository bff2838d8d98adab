"""The scores that docs/score.md computes from stored embeddings, row by row in float64.

The functions do not normalise rows. For all scores, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Partition = Sequence[Sequence[int] | NDArray[np.int64]]  # the row indices of each batch


def rows(embeddings: ArrayLike) -> Floats:
    matrix = np.asarray(embeddings, dtype=np.float64)
    assert matrix.ndim == 2
    return matrix


def log_sum_exp(values: Floats) -> float:
    """Return log Σ exp(values); the maximum is subtracted first to avoid overflow."""
    largest = float(values.max())
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def clip_score(images: ArrayLike, texts: ArrayLike) -> Floats:
    """Return <f_i, g_i>."""
    pairs = zip(rows(images), rows(texts), strict=True)
    return np.array([math.fsum(image * text) for image, text in pairs])


def neg_clip_loss_batch(images: ArrayLike, texts: ArrayLike, temperature: float) -> Floats:
    """Return <f_i, g_i> - R_B(i) with these n rows as the batch B.

    R_B(i) = T/2 [log Σ_j exp(<f_i, g_j> / T) + log Σ_j exp(<f_j, g_i> / T)]; j may be i.
    """
    f, g = rows(images), rows(texts)
    assert f.shape == g.shape
    logits = np.array([[math.fsum(image * text) for text in g] for image in f]) / temperature
    scores = []
    for i in range(len(f)):
        over_texts, over_images = log_sum_exp(logits[i, :]), log_sum_exp(logits[:, i])
        scores.append(temperature * (logits[i, i] - (over_texts + over_images) / 2))
    return np.array(scores)


def neg_clip_loss(
    images: ArrayLike, texts: ArrayLike, temperature: float, partitions: Sequence[Partition]
) -> Floats:
    """Return the mean over K partitions of each row's score in its batch.

    Every partition contains every row once.
    """
    f, g = rows(images), rows(texts)
    total = np.zeros(len(f))
    for partition in partitions:
        assert sorted(int(row) for batch in partition for row in batch) == list(range(len(f)))
        for batch in partition:
            chosen = [int(row) for row in batch]
            total[chosen] += neg_clip_loss_batch(f[chosen], g[chosen], temperature)
    return total / len(partitions)


def neg_clip_loss_literal(
    images: ArrayLike,
    texts: ArrayLike,
    temperature: float,
    permutations: Sequence[ArrayLike],
    batch_size: int,
) -> Floats:
    """Compute negCLIPLoss with the batches of the public code for one metadata file.

    Each permutation is cut every `batch_size` rows. The last batch may be smaller, and its rows
    then score higher, since their sums have fewer terms.
    """
    partitions = []
    for permutation in permutations:
        order = [int(row) for row in np.asarray(permutation)]
        starts = range(0, len(order), batch_size)
        partitions.append([order[start : start + batch_size] for start in starts])
    return neg_clip_loss(images, texts, temperature, partitions)


def norm_sim(images: ArrayLike, targets: ArrayLike, p: float) -> Floats:
    """Return the p-norm of each row's similarities to the M targets, not divided by M.

    For p = math.inf this is the largest absolute similarity.
    """
    scores = []
    for image in rows(images):
        similarities = [abs(math.fsum(image * target)) for target in rows(targets)]
        if p == math.inf:
            scores.append(max(similarities))
        else:
            scores.append(math.fsum(value**p for value in similarities) ** (1 / p))
    return np.array(scores)


def second_moment(embeddings: ArrayLike) -> Floats:
    """Return (1/M) Σ_j t_j t_j^T [d, d], not centred."""
    targets = rows(embeddings)
    total = np.zeros((targets.shape[1], targets.shape[1]))
    for target in targets:
        total += np.outer(target, target)
    return total / len(targets)


def quadratic_form(images: ArrayLike, moment: Floats) -> Floats:
    """Return f_i^T Σ f_i, computed row by row so that equal rows get equal values."""
    return np.array([np.sum(np.outer(image, image) * moment) for image in rows(images)])


def vas(images: ArrayLike, targets: ArrayLike) -> Floats:
    """Return f_i^T Σ f_i, where Σ is the second moment of the targets."""
    return quadratic_form(images, second_moment(targets))


def best_rows(
    candidates: Sequence[int], scores: Floats, num_kept: int, uids: Sequence[Any]
) -> list[int]:
    """Return the `num_kept` candidates with the highest scores; ties go to the smaller uid."""
    assert 0 <= num_kept <= len(candidates)
    assert not np.isnan(scores).any()
    return sorted(candidates, key=lambda row: (-float(scores[row]), uids[row]))[:num_kept]


def norm_sim_d(
    images: ArrayLike,
    in_first_stage: ArrayLike,
    num_kept: int,
    num_rounds: int,
    uids: Sequence[Any] | None = None,
) -> NDArray[np.int64]:
    """Return the round of NormSim_2-D (VAS-D) in which each row of the pool is dropped.

    The round is 0 for a row outside the first stage, 1 to num_rounds for a row that is dropped, and
    num_rounds + 1 for the `num_kept` remaining rows. Σ is the second moment of the whole pool in
    round 1, and of the remaining rows in later rounds. Of tied rows the one with the smaller uid
    remains (the smaller row index without `uids`).
    """
    f = rows(images)
    order = range(len(f)) if uids is None else uids
    kept = [row for row, chosen in enumerate(np.asarray(in_first_stage)) if chosen]
    chunk = math.ceil((len(kept) - num_kept) / num_rounds)
    rounds = np.zeros(len(f), dtype=np.int64)
    moment = second_moment(f)
    for round_index in range(1, num_rounds + 1):
        size = num_kept if round_index == num_rounds else max(len(kept) - chunk, num_kept)
        values = quadratic_form(f, moment)
        rounds[kept] = round_index
        kept = best_rows(kept, values, size, order)
        if kept:
            moment = second_moment(f[kept])
    rounds[kept] = num_rounds + 1
    return rounds


def two_stage(
    neg_clip_loss: ArrayLike,
    norm_sim: ArrayLike,
    first_fraction: float,
    fraction: float,
    uids: Sequence[Any] | None = None,
) -> NDArray[np.bool_]:
    """Return a mask of the rows that two stages keep.

    The first stage keeps the top int(N first_fraction) by the first score, and the second keeps of
    these the top int(N fraction) by the second score; N is the size of the pool in both. Ties go to
    the smaller uid (the smaller row index without `uids`).
    """
    first = np.asarray(neg_clip_loss, dtype=np.float64)
    second = np.asarray(norm_sim, dtype=np.float64)
    assert first.shape == second.shape
    total = len(first)
    order = range(total) if uids is None else uids
    survivors = best_rows(range(total), first, int(total * first_fraction), order)
    kept = best_rows(survivors, second, int(total * fraction), order)
    mask = np.zeros(total, dtype=np.bool_)
    mask[kept] = True
    return mask
