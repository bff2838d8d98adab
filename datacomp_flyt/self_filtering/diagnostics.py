"""What a round's mix and scores are like: noise, overlap, diversity, drift.

    python -m datacomp_flyt.self_filtering.diagnostics --run_dir RUN --round 1 \\
        --labels kinds.parquet --noise_kinds swapped blank

writes `RUN/round_1/diagnostics.json`. Counts are of all pairs; what needs captions or scores is of
a sample of 200,000, chosen by a hash of the uid.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.diagnostics")

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError, first_line
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.score_table import ScoreTable
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import decode_uids
from datacomp_flyt.report.sample import PoolSample, read_sample
from datacomp_flyt.report.words import count_words
from datacomp_flyt.self_filtering.mix import COLUMN, CONFIDENT, MIX
from datacomp_flyt.self_filtering.scores import SEEN, UNSEEN
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers

SCORE_COLUMNS = (COLUMN, "m_flyt", "flyt")  # the last two of the closed loop
_SAMPLE = 200_000
_FEWEST = 5  # occurrences of a word that counts as a concept

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def overlap(one: Floats, other: Floats) -> float:
    """Jaccard's index weighted by shares of the draws: Σ min / Σ max of the two, 0 to 1.

    Args:
        one, other: draws [M] of the same examples.
    """
    shares, others = one / one.sum(), other / other.sum()
    return float(np.minimum(shares, others).sum() / np.maximum(shares, others).sum())


def effective_number(weights: Floats) -> float:
    """exp of the entropy: how many things, all alike, would be as diverse; 0 of nothing."""
    total = float(weights.sum())
    if not total:
        return 0.0
    shares = weights[weights > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def ranks(values: Floats) -> Floats:
    """Ranks [n] from 1, the mean one where values are equal."""
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = (2 * last - counts + 1) / 2
    return means[inverse] if len(distinct) else np.empty(0)


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's, over examples where both are numbers; NaN where one is constant there."""
    both = np.isfinite(one) & np.isfinite(other)
    first, second = ranks(one[both]), ranks(other[both])
    if len(first) < 2 or not first.std() or not second.std():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def area_under_curve(clean: Floats, noise: Floats) -> float:
    """How often a clean pair scores above a noisy one, ties half; NaN where either is missing."""
    clean, noise = clean[np.isfinite(clean)], noise[np.isfinite(noise)]
    if not len(clean) or not len(noise):
        return float("nan")
    of_clean = ranks(np.concatenate([clean, noise]))[: len(clean)].sum()
    return float((of_clean - len(clean) * (len(clean) + 1) / 2) / (len(clean) * len(noise)))


def noise_of_mix(
    counts: Counts, kinds: NDArray[np.object_], noisy: NDArray[np.bool_]
) -> dict[str, Any]:
    """How well a mix keeps clean pairs and leaves noise out.

    Args:
        counts: draws of each labelled pair [n].
        kinds: of the pairs [n].
        noisy: whether a pair's kind is noise [n].

    Returns:
        clean_precision: share of the draws that are of clean pairs; clean_recall: share of the
        clean pairs that are drawn; noise_precision and noise_recall: of the pairs left out the
        share that is noise, and of the noise the share that is left out; kinds: share of draws.
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


def words_of_mix(sample: PoolSample, counts: Counts) -> dict[str, float]:
    """Diversity of the captions' words: effective numbers, and how much of the pool's is covered.

    Args:
        counts: draws of the sample's examples [n].
    """
    if sample.captions is None:
        return {}
    words = count_words(sample.captions.tolist())
    pool = words.totals(np.ones(len(counts)))
    mix = words.totals(counts.astype(np.float64))
    usual = pool >= _FEWEST
    return {
        "effective_words": effective_number(mix),
        "effective_words_of_pool": effective_number(pool),
        "word_coverage": _share((usual & (mix > 0)).sum(), usual.sum()),
    }


def _counts_of(sample_uids: NDArray[np.void], path: Path) -> Counts:
    uids, repeats = read_subset(path)
    places = find_uids(uids["f0"].copy(), uids["f1"].copy(), sample_uids)
    return np.where(places >= 0, repeats[places], 0).astype(np.int64)


def _overlap_of(path: Path, before: Path) -> float:
    (one, of_one), (other, of_other) = read_subset(path), read_subset(before)
    both = np.unique(np.concatenate([one, other]))
    draws = np.zeros((2, len(both)))
    for row, uids, repeats in ((0, one, of_one), (1, other, of_other)):
        draws[row, np.searchsorted(both, uids)] = repeats
    return overlap(draws[0], draws[1])


def read_labels(path: Path) -> tuple[NDArray[np.void], NDArray[np.object_]]:
    """uids and kinds of a table of both.

    Raises:
        InputError: no such table.
    """
    try:
        table = pq.read_table(path, columns=["uid", "kind"])
        table.validate(full=True)  # UTF-8 is not checked before
        uids = decode_uids(table["uid"])
        kinds = np.array(table["kind"].to_pylist(), np.object_)
    except Exception as error:  # Arrow raises a dozen kinds of damaged files
        raise InputError(
            f"--labels {path} is no parquet file with `uid` and `kind` ({first_line(error)})"
        ) from None
    if not len(uids) or not all(isinstance(kind, str) for kind in kinds):
        raise InputError(f"--labels {path} has no rows, or rows whose `kind` is no text")
    order = np.sort(uids)
    if (order[1:] == order[:-1]).any():
        raise InputError(f"--labels {path} has a uid twice: keep one row for each")
    return uids, kinds


class Scores:
    """The columns of a round's own scores, over a sample, and NaN where there is none."""

    def __init__(self, folder: Path, sample: PoolSample, workers: int) -> None:
        self.columns: dict[str, Floats] = {}
        if not (folder / COLUMN).is_dir():
            return
        shards = open_shards(str(folder / COLUMN), "scores", workers)
        table = ScoreTable(shards, str(folder))
        names = [n for n in table.columns if n in (*SCORE_COLUMNS, UNSEEN, SEEN)]
        read = table.read(names, sample.pool, workers, True, True, progress=False)
        for name, values in zip(names, read, strict=True):
            key = COLUMN if name in SCORE_COLUMNS else name
            self.columns[key] = values.astype(np.float64)


def judge(run_dir: Path, number: int, labels: Path | None, noise: list[str], seed: int) -> None:
    """Write a round's `diagnostics.json`.

    Raises:
        InputError: a file is missing or wrong.
    """
    workers, folder = default_num_workers(), run_dir / f"round_{number}"
    before = run_dir / f"round_{number - 1}"
    # the last mix has been made of the round before, whose model was the last to see the pool
    metadata = folder if (folder / "metadata").is_dir() else before
    shards = open_shards(str(metadata / "metadata"), "--metadata_dir", workers)
    sample = read_sample(shards, _SAMPLE, seed, workers)
    uids = sample.pool.uids
    counts = _counts_of(uids, folder / MIX)
    _, repeats = read_subset(folder / MIX)
    draws = int(repeats.sum())
    found: dict[str, Any] = {
        "round": number,
        "draws": draws,
        "distinct": len(repeats),
        "effective": draws**2 / float(np.square(repeats, dtype=np.float64).sum()),
        **words_of_mix(sample, counts),
    }
    if number:
        found["overlap"] = _overlap_of(folder / MIX, before / MIX)
    scores = Scores(folder / "scores", sample, workers).columns
    if number and COLUMN in scores:
        last = Scores(before / "scores", sample, workers).columns
        if COLUMN in last:
            found["rank_correlation"] = rank_correlation(scores[COLUMN], last[COLUMN])
    if labels is not None:
        found |= _of_labels(labels, noise, uids, counts, folder, scores)
    path = check_save_path(folder / "diagnostics.json", "--run_dir")
    with atomic_write(path) as file:
        file.write(json.dumps(_plain(found), indent=1).encode() + b"\n")
    say(*json.dumps(_plain(found), indent=1).split("\n"))


def _of_labels(
    labels: Path,
    noise: list[str],
    uids: NDArray[np.void],
    counts: Counts,
    folder: Path,
    scores: dict[str, Floats],
) -> dict[str, Any]:
    """Of the pairs that have a label: the mix, its confident part, and what scores separate."""
    labelled, of_label = read_labels(labels)
    order = np.lexsort((labelled["f1"], labelled["f0"]))
    labelled, of_label = labelled[order], of_label[order]
    places = find_uids(labelled["f0"].copy(), labelled["f1"].copy(), uids)
    known = places >= 0
    if not known.any():
        raise InputError(f"--labels {labels} has none of the pool's pairs")
    kinds = of_label[places[known]]
    noisy = np.isin(kinds.astype(str), noise)
    found: dict[str, Any] = {"mix": noise_of_mix(counts[known], kinds, noisy)}
    if (folder / CONFIDENT).exists():
        confident = _counts_of(uids, folder / CONFIDENT)[known]
        found["confident"] = noise_of_mix(confident, kinds, noisy)
    in_mix = counts[known] > 0
    found["auc"], found["auc_in_mix"] = {}, {}
    for name, values in scores.items():
        own = values[known]
        found["auc"][name] = area_under_curve(own[~noisy], own[noisy])
        found["auc_in_mix"][name] = area_under_curve(own[~noisy & in_mix], own[noisy & in_mix])
    return found


def _plain(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    """The command above."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--labels", type=Path, help="parquet of uid and kind")
    parser.add_argument("--noise_kinds", nargs="*", default=[], help="kinds that are noise")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    args = parser.parse_args()
    judge(args.run_dir, args.round, args.labels, args.noise_kinds, args.seed)
