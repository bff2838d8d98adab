"""The page's sections: numbers and figures for the template, one function each."""

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
_WORDS = 15  # rows of each table of words
_LEAST_Z = 1.0  # nearer to 0, a word is as frequent as chance makes it

Counts = Sequence[NDArray[np.integer]]
"""How often each selection draws the sampled examples [n]."""

Section = dict[str, Any]


def summary(
    sample: PoolSample, selections: Sequence[Selection], with_image: Sequence[int] | None
) -> Section:
    """Numbers on each selection, counted over all of it.

    Args:
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
                "with_image": number,
                "distinct": selection.distinct,
                "effective": selection.effective,
                "share": selection.distinct / size,
                "most": selection.most,
                "style": style,
            }
            for selection, style, number in zip(
                selections, figures.STYLES, with_image or [0] * len(selections), strict=False
            )
        ],
    }


def distributions(
    columns: dict[str, NDArray[np.floating]],
    ordered: NDArray[np.floating],
    ranking: Ranking,
    counts: Counts,
) -> list[Section]:
    """Each column, and the mixed score, over the pool and over each selection's draws."""
    if ranking.name not in columns:
        columns = {ranking.name: ordered} | columns
    found = []
    for name, values in columns.items():
        edges = statistics.bin_edges(values)
        pool, mean = statistics.weighted_histogram(values, np.ones(len(values)), edges)
        drawn = [statistics.weighted_histogram(values, weights, edges) for weights in counts]
        found.append(
            {
                "name": name,
                "figure": figures.distribution(edges, pool, [shares for shares, _ in drawn], name),
                "mean": mean,
                "means": [mean for _, mean in drawn],
                "without": int(np.count_nonzero(~np.isfinite(values))),
            }
        )
    return found


def repetitions(selections: Sequence[Selection]) -> list[Section]:
    """Figure 2, counted over all of each selection."""
    found = []
    for number, selection in enumerate(selections):
        edges, examples = statistics.repetition_histogram(selection.counts)
        figure = figures.repetitions(edges, examples, number, selection.name)
        found.append(
            {
                "name": selection.name,
                "figure": figure,
                "once": float(np.mean(selection.counts == 1)),
                "mean": selection.draws / selection.distinct,
                "most": selection.most,
                "spans": bool(np.diff(edges).max() > 1),
            }
        )
    return found


def mixing(ranking: Ranking, chosen: NDArray[np.bool_], counts: Counts) -> Section | None:
    """Weights, statistics and contributions of the mixing model's inputs (Table 2)."""
    model = ranking.model
    if model is None:
        return None
    inputs = []
    for number, (name, weight) in enumerate(zip(model.columns, model.weights, strict=True)):
        mean = model.means[number] if model.means and model.standardize else 0.0
        std = model.stds[number] if model.stds and model.standardize else 1.0
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
    columns: dict[str, NDArray[np.floating]], ordered: NDArray[np.floating], ranking: Ranking
) -> Section:
    """Pearson's correlations of the columns, and of the mixed score with them."""
    if ranking.name not in columns:
        columns = columns | {ranking.name: ordered}
    return {"names": list(columns), "values": statistics.correlations(list(columns.values()))}


def penalties(
    uids: NDArray[np.void],
    ordered: NDArray[np.floating],
    name: str,
    counts: Counts,
    per_example: float,
    repetition_penalties: Sequence[float],
    seed: int,
) -> Section:
    """Counts against score: Soft Cap Sampling of the sample for several alphas, and as selected.

    Draws per example stay those of the pool, so that the sampler runs to the same log time, and an
    example of some score is drawn as often as it would be there.

    Args:
        uids, ordered: of the sampled examples [n], and their score, called `name`.
        per_example: draws per example of the pool.
        seed: of the sampler.
    """
    finite = np.isfinite(ordered)
    uids, ordered = uids[finite], ordered[finite]
    num_samples = max(round(per_example * len(ordered)), 1)
    simulated = [
        soft_cap_counts(ordered, uids, num_samples, penalty, seed)
        for penalty in repetition_penalties
    ]
    scores, means = statistics.mean_by_score(ordered, simulated)
    _, selected = statistics.mean_by_score(ordered, [drawn[finite] for drawn in counts])
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
        "examples": len(ordered),
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
    """What the selections have in common, counted over all of them; None for a single one."""
    if len(selections) < 2:
        return None
    draws, distinct = overlap(selections)
    names = [selection.name for selection in selections]
    return {"names": names, "draws": draws, "distinct": distinct}


def words(captions: Sequence[str], counts: Counts, selections: Sequence[Selection]) -> Section:
    """Words that each selection takes more, and less, often than the pool has them."""
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
