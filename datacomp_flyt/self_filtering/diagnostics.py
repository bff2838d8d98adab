"""Describe a round's subset and scores by numbers: noise, overlap, diversity, drift.

    python -m datacomp_flyt.self_filtering.diagnostics --run_dir RUN --round 1 \\
        --labels kinds.parquet --noise_kinds swapped blank

writes `RUN/round_1/diagnostics.json`. Counts are of all pairs. Numbers that need captions or scores
are of a sample of 200,000 pairs, chosen by a hash of the uid.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.diagnostics")

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.score_table import ScoreTable
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.report.sample import PoolSample, read_sample
from datacomp_flyt.report.words import count_words
from datacomp_flyt.self_filtering.labels import read_labels
from datacomp_flyt.self_filtering.next_subset import COLUMN, CONFIDENT, SUBSET
from datacomp_flyt.self_filtering.scores import SEEN, UNSEEN
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers

SCORE_COLUMNS = (COLUMN, "m_flyt", "flyt")  # the last two of the closed loop
_SAMPLE = 200_000
_FEWEST = 5  # occurrences in the pool of a word that counts

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def overlap(one: Floats, other: Floats) -> float:
    """Return the weighted Jaccard index of two shares of draws: Σ min / Σ max, 0 to 1.

    Args:
        one, other: draw counts [M] of the same examples.
    """
    shares, others = one / one.sum(), other / other.sum()
    return float(np.minimum(shares, others).sum() / np.maximum(shares, others).sum())


def effective_number(weights: Floats) -> float:
    """Return exp of the entropy of weights [n]: n where all are equal, 0 where all are 0."""
    total = float(weights.sum())
    if not total:
        return 0.0
    shares = weights[weights > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def ranks(values: Floats) -> Floats:
    """Return ranks [n] from 1; equal values get their mean rank."""
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = (2 * last - counts + 1) / 2
    return means[inverse] if len(distinct) else np.empty(0)


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's correlation where both are finite; NaN where one is constant there."""
    both = np.isfinite(one) & np.isfinite(other)
    first, second = ranks(one[both]), ranks(other[both])
    if len(first) < 2 or not first.std() or not second.std():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def area_under_curve(clean: Floats, noise: Floats) -> float:
    """Return the share of (clean, noisy) pairs in which the clean score is larger; ties are half.

    Args:
        clean, noise: scores [n] and [m]; those that are not finite are left out.

    Returns:
        0 to 1; NaN where no clean or no noisy score is finite.
    """
    clean, noise = clean[np.isfinite(clean)], noise[np.isfinite(noise)]
    if not len(clean) or not len(noise):
        return float("nan")
    rank_sum = ranks(np.concatenate([clean, noise]))[: len(clean)].sum()
    return float((rank_sum - len(clean) * (len(clean) + 1) / 2) / (len(clean) * len(noise)))


def noise_of_subset(
    counts: Counts, kinds: NDArray[np.object_], noisy: NDArray[np.bool_]
) -> dict[str, Any]:
    """Measure how well a subset keeps clean pairs and leaves noise out.

    Args:
        counts: draw counts of the labelled pairs [n].
        kinds: the kinds of the pairs [n].
        noisy: whether a pair's kind is noise [n].

    Returns:
        clean_precision: the share of the draws that are of clean pairs; clean_recall: the share of
        the clean pairs that are drawn; noise_precision: the share of the pairs left out that are
        noise; noise_recall: the share of the noise that is left out; kinds: the share of the draws
        by kind.
    """
    drawn, total = counts > 0, max(int(counts.sum()), 1)
    return {
        "clean_precision": _share(counts[~noisy].sum(), total),
        "clean_recall": _share((drawn & ~noisy).sum(), (~noisy).sum()),
        "noise_precision": _share((~drawn & noisy).sum(), (~drawn).sum()),
        "noise_recall": _share((~drawn & noisy).sum(), noisy.sum()),
        "kinds": {
            str(kind): _share(counts[kinds == kind].sum(), total) for kind in np.unique(kinds)
        },
    }


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")


def words_of_subset(sample: PoolSample, counts: Counts) -> dict[str, float]:
    """Measure the diversity of the caption words of a subset.

    Args:
        sample: a sample of the pool.
        counts: draw counts of the sample's examples [n].

    Returns:
        effective_words and effective_words_of_pool: exp of the entropies; word_coverage: the share
        of the pool's words, of 5 occurrences or more, that the subset has. Empty without captions.
    """
    if sample.captions is None:
        return {}
    words = count_words(sample.captions.tolist())
    pool = words.totals(np.ones(len(counts)))
    subset = words.totals(counts.astype(np.float64))
    usual = pool >= _FEWEST
    return {
        "effective_words": effective_number(subset),
        "effective_words_of_pool": effective_number(pool),
        "word_coverage": _share((usual & (subset > 0)).sum(), usual.sum()),
    }


def _counts_of(sample_uids: NDArray[np.void], path: Path) -> Counts:
    """Return how often a subset draws each example of a sample [n]."""
    uids, repeats = read_subset(path)
    rows = find_uids(uids["f0"].copy(), uids["f1"].copy(), sample_uids)
    return np.where(rows >= 0, repeats[rows], 0).astype(np.int64)


def _overlap_of(path: Path, before: Path) -> float:
    subsets = [read_subset(path), read_subset(before)]
    union = np.unique(np.concatenate([uids for uids, _ in subsets]))
    draws = np.zeros((2, len(union)))
    for row, (uids, repeats) in enumerate(subsets):
        draws[row, np.searchsorted(union, uids)] = repeats
    return overlap(draws[0], draws[1])


def read_scores(folder: Path, sample: PoolSample, workers: int) -> dict[str, Floats]:
    """Return a round's own scores of a sample [n], by column; NaN for examples without a score.

    Args:
        folder: the round's folder of score tables; without scores the result is empty.
        sample: a sample of the pool.
        workers: threads that read.
    """
    if not (folder / COLUMN).is_dir():
        return {}
    table = ScoreTable(open_shards(str(folder / COLUMN), "scores", workers), str(folder))
    names = [n for n in table.columns if n in (*SCORE_COLUMNS, UNSEEN, SEEN)]
    columns = table.read(names, sample.pool, workers, True, True, progress=False)
    return {
        COLUMN if name in SCORE_COLUMNS else name: values.astype(np.float64)
        for name, values in zip(names, columns, strict=True)
    }


def judge(
    run_dir: Path,
    round_index: int,
    *,
    labels: Path | None = None,
    noise_kinds: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write a round's `diagnostics.json`, and print it.

    Args:
        run_dir: the run's folder.
        round_index: the round.
        labels: a table of `uid` and `kind`; without, nothing is said about noise.
        noise_kinds: the kinds that are noise.
        seed: the seed of the sample.

    Raises:
        InputError: a file is missing or wrong.
    """
    folder, before = (run_dir / f"round_{index}" for index in (round_index, round_index - 1))
    workers = default_num_workers()
    # no model has embedded the pool after the last subset was made: the round before has its pool
    metadata = folder if (folder / "metadata").is_dir() else before
    shards = open_shards(str(metadata / "metadata"), "--metadata_dir", workers)
    sample = read_sample(shards, _SAMPLE, seed, workers)
    uids = sample.pool.uids
    counts = _counts_of(uids, folder / SUBSET)
    _, repeats = read_subset(folder / SUBSET)
    draws = int(repeats.sum())
    results: dict[str, Any] = {
        "round": round_index,
        "draws": draws,
        "distinct": len(repeats),
        "effective": draws**2 / float(np.square(repeats, dtype=np.float64).sum()),
        **words_of_subset(sample, counts),
    }
    if round_index:
        results["overlap"] = _overlap_of(folder / SUBSET, before / SUBSET)
    scores = read_scores(folder / "scores", sample, workers)
    if round_index and COLUMN in scores:
        former = read_scores(before / "scores", sample, workers)
        if COLUMN in former:
            results["rank_correlation"] = rank_correlation(scores[COLUMN], former[COLUMN])
    if labels is not None:
        results |= _judge_by_labels(labels, noise_kinds, uids, counts, folder, scores)
    text = json.dumps(_nan_as_null(results), indent=1)
    with atomic_write(check_save_path(folder / "diagnostics.json", "--run_dir")) as file:
        file.write(text.encode() + b"\n")
    say(*text.split("\n"))


def _judge_by_labels(
    labels: Path,
    noise_kinds: Sequence[str],
    uids: NDArray[np.void],
    counts: Counts,
    folder: Path,
    scores: dict[str, Floats],
) -> dict[str, Any]:
    """Judge the subset, its confident part and the scores by the pairs that have a label.

    Args:
        labels: a table of `uid` and `kind`.
        noise_kinds: the kinds that are noise.
        uids, counts: the sample's uids, and their draw counts in the subset [n].
        folder: the round's folder.
        scores: scores of the sample [n], by column.

    Raises:
        InputError: no pair of the sample has a label.
    """
    label_uids, label_kinds = read_labels(labels)
    order = np.lexsort((label_uids["f1"], label_uids["f0"]))
    label_uids, label_kinds = label_uids[order], label_kinds[order]
    rows = find_uids(label_uids["f0"].copy(), label_uids["f1"].copy(), uids)
    known = rows >= 0
    if not known.any():
        raise InputError(f"--labels {labels} has none of the pool's pairs")
    kinds = label_kinds[rows[known]]
    noisy = np.isin(kinds.astype(str), list(noise_kinds))
    results: dict[str, Any] = {"subset": noise_of_subset(counts[known], kinds, noisy)}
    if (folder / CONFIDENT).exists():
        confident = _counts_of(uids, folder / CONFIDENT)[known]
        results["confident"] = noise_of_subset(confident, kinds, noisy)
    drawn = counts[known] > 0
    results["auc"], results["auc_in_subset"] = {}, {}
    for name, column in scores.items():
        values = column[known]
        results["auc"][name] = area_under_curve(values[~noisy], values[noisy])
        results["auc_in_subset"][name] = area_under_curve(
            values[~noisy & drawn], values[noisy & drawn]
        )
    return results


def _nan_as_null(value: Any) -> Any:
    """Replace NaN by None at any depth, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _nan_as_null(part) for key, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    """Parse the flags and call `judge`."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--run_dir", type=Path, required=True, help="folder of the run")
    add("--round", type=int, required=True, dest="round_index", help="the round")
    add("--labels", type=Path, help="parquet of uid and kind")
    add("--noise_kinds", nargs="*", default=[], help="kinds that are noise")
    add("--seed", type=int, default=0, help="seed of the sample")
    judge(**vars(parser.parse_args()))
