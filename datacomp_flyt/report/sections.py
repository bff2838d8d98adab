"""Makes the sections of the page, numbers and figures for the template, by one function each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.report import figures, statistics
from datacomp_flyt.report.sample import PoolSample
from datacomp_flyt.report.scores import Ranking
from datacomp_flyt.report.selections import Selection, overlap
from datacomp_flyt.report.words import PRIOR_WORDS, count_words, word_odds
from datacomp_flyt.samplers import soft_cap_counts

MOST_PENALTIES = len(figures.STYLES)
_WORDS = 15  # rows of a table of words
_LEAST_Z = 1.0  # words with |z| below this are left out

Counts = Sequence[NDArray[np.integer]]
"""For each selection, the number of draws of each sampled example [n]."""

Section = dict[str, Any]


def summary(
    sample: PoolSample, selections: Sequence[Selection], with_image: Sequence[int] | None
) -> Section:
    """Make the table of selections, counted over all of their draws.

    Args:
        sample: the sample of the pool.
        selections: the selections.
        with_image: the number of each selection's draws that have an image; None if not known.
    """
    size = sample.rule.pool_size
    return {
        "images_known": with_image is not None,
        "pool_size": size,
        "files": len(sample.pool.shards),
        "sample_size": len(sample),
        "whole": sample.rule.whole,
        "selections": [
            {
                "name": selection.name,
                "path": selection.path,
                "draws": selection.draws,
                "with_image": images,
                "distinct": selection.distinct,
                "effective": selection.effective,
                "share": selection.distinct / size,
                "most": selection.most,
                "style": style,
            }
            for selection, style, images in zip(
                selections, figures.STYLES, with_image or [0] * len(selections), strict=False
            )
        ],
    }


def distributions(
    columns: dict[str, NDArray[np.floating]],
    ranked: NDArray[np.floating],
    ranking: Ranking,
    counts: Counts,
) -> list[Section]:
    """Make histograms of each column and the mixed score, over the pool and the draws."""
    if ranking.name not in columns:
        columns = {ranking.name: ranked} | columns
    histograms = []
    for name, values in columns.items():
        edges = statistics.bin_edges(values)
        pool, mean = statistics.weighted_histogram(values, np.ones(len(values)), edges)
        drawn = [statistics.weighted_histogram(values, weights, edges) for weights in counts]
        histograms.append(
            {
                "name": name,
                "figure": figures.distribution(edges, pool, [shares for shares, _ in drawn], name),
                "mean": mean,
                "means": [mean for _, mean in drawn],
                "without": int(np.count_nonzero(~np.isfinite(values))),
            }
        )
    return histograms


def repetitions(selections: Sequence[Selection]) -> list[Section]:
    """Make histograms of repetitions (FLYT, Figure 2), counted over all draws."""
    histograms = []
    for selection, style in zip(selections, figures.STYLES, strict=False):
        edges, examples = statistics.repetition_histogram(selection.counts)
        figure = figures.repetitions(edges, examples, style, selection.name)
        histograms.append(
            {
                "name": selection.name,
                "figure": figure,
                "once": float(np.mean(selection.counts == 1)),
                "mean": selection.draws / selection.distinct,
                "most": selection.most,
                "spans": bool(np.diff(edges).max() > 1),
            }
        )
    return histograms


def mixing(ranking: Ranking, chosen: NDArray[np.bool_], counts: Counts) -> Section | None:
    """Make the table of the mixing model's inputs: weights, statistics and contributions."""
    model = ranking.model
    if model is None:
        return None
    inputs = []
    for index, (name, weight) in enumerate(zip(model.columns, model.weights, strict=True)):
        mean = model.means[index] if model.means and model.standardize else 0.0
        std = model.stds[index] if model.stds and model.standardize else 1.0
        values = ranking.inputs[name][chosen]
        inputs.append(statistics.contribution(name, values, counts, weight, mean, std))
    inputs.sort(key=lambda item: (-abs(item.weight), item.column))
    return {
        "inputs": inputs,
        "figure": figures.contributions(inputs),
        "standardize": model.standardize,
        "left_out": ranking.left_out,
    }


def correlation(
    columns: dict[str, NDArray[np.floating]], ranked: NDArray[np.floating], ranking: Ranking
) -> Section:
    """Compute Pearson's correlations of the columns and the mixed score."""
    if ranking.name not in columns:
        columns = columns | {ranking.name: ranked}
    return {"names": list(columns), "values": statistics.correlations(list(columns.values()))}


def penalties(
    uids: NDArray[np.void],
    ranked: NDArray[np.floating],
    name: str,
    counts: Counts,
    per_example: float,
    repetition_penalties: Sequence[float],
    seed: int,
) -> Section:
    """Make draws against score: as selected, and by Soft Cap Sampling for several alphas.

    The number of draws per example is that of the pool, so that an example of some score is drawn
    as often in the sample as it would be in the pool.

    Args:
        uids: the uids of the sampled examples [n].
        ranked: the scores of these examples [n].
        name: the name of the score.
        counts: the draws of each selection.
        per_example: the number of draws per example of the pool.
        repetition_penalties: the alphas.
        seed: the seed of the sampler.
    """
    finite = np.isfinite(ranked)
    uids, ranked = uids[finite], ranked[finite]
    num_samples = max(round(per_example * len(ranked)), 1)
    simulated = [
        soft_cap_counts(ranked, uids, num_samples, penalty, seed)
        for penalty in repetition_penalties
    ]
    scores, means = statistics.mean_by_score(ranked, simulated)
    _, selected = statistics.mean_by_score(ranked, [drawn[finite] for drawn in counts])
    rows = []
    for penalty, drawn, style in zip(repetition_penalties, simulated, figures.STYLES, strict=False):
        squares = float(np.square(drawn, dtype=np.float64).sum())
        rows.append(
            {
                "penalty": penalty,
                "style": style,
                "share": float(np.mean(drawn > 0)),
                "effective": num_samples**2 / squares / len(drawn),
                "most": int(drawn.max()),
            }
        )
    alphas = ", ".join(f"{penalty:g}" for penalty in repetition_penalties)
    return {
        "name": name,
        "draws": num_samples,
        "examples": len(ranked),
        "per_example": per_example,
        "rows": rows,
        "simulated": figures.counts_by_score(
            scores, means, name, f"Draws per example against {name}, for alpha {alphas}"
        ),
        "selected": figures.counts_by_score(
            scores, selected, name, f"Draws per example against {name}, in each selection"
        ),
    }


def overlap_tables(selections: Sequence[Selection]) -> Section | None:
    """Compute what the selections have in common, over all draws; None for a single selection."""
    if len(selections) < 2:
        return None
    draws, distinct = overlap(selections)
    names = [selection.name for selection in selections]
    return {"names": names, "draws": draws, "distinct": distinct}


def words(captions: Sequence[str], counts: Counts, selections: Sequence[Selection]) -> Section:
    """Make tables of words that each selection draws more and less often than the pool has them."""
    counted = count_words(captions)
    tables = []
    for drawn, selection in zip(counts, selections, strict=True):
        odds = word_odds(counted, drawn)
        tables.append(
            {
                "name": selection.name,
                "over": [word for word in odds[:_WORDS] if word.z >= _LEAST_Z],
                "under": [word for word in odds[::-1][:_WORDS] if word.z <= -_LEAST_Z],
            }
        )
    return {"tables": tables, "captions": len(captions), "prior": PRIOR_WORDS}
