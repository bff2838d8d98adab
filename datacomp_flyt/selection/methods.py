"""Scoring methods: functions of a pool that return its `Scores`, one for each published method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt import mixing
from datacomp_flyt.arguments import check_list
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.memmap_arrays import filter_rows, zeros_like_storage
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel
from datacomp_flyt.mixing.published import HYPE_COLUMNS, PUBLISHED_COLUMNS, SCORER_OF
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.samplers import top_fraction_counts
from datacomp_flyt.samplers.checks import check_fraction
from datacomp_flyt.scorers.e_flyt.e_flyt import check_features, e_flyt_scores
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head
from datacomp_flyt.selection.scores import AVAILABLE, PoolSize, Scores, check_fraction_of
from datacomp_flyt.self_filtering.finalize import final_subset
from datacomp_flyt.self_filtering.next_subset import counts_in
from datacomp_flyt.streams import say
from datacomp_flyt.threads import blocks

TWO_STAGES = ("negCLIPLoss", "normsim_inf")
FIRST_FRACTION = 0.3
WEIGHT_RATIO = 8.0
_BLOCK = 1 << 20

ScoringMethod = Callable[[Columns], Scores]
"""A scoring method with its options, as a function of the pool. The files that its options name
are read when the function is made, which is before the pool is read."""


def column(pool: Columns, name: str) -> Scores:
    """A score column as it is.

    Args:
        name: a column of the score tables or the metadata, such as `clip_l14_similarity_score`.

    Raises:
        InputError: there is no such column, or it cannot be joined to the pool.
    """
    return of_column(name)(pool)


def m_flyt(
    pool: Columns, *, scoring_model: str | Path, allow_missing_scores: bool = False
) -> Scores:
    """M-FLYT: a learned linear mix of standardised columns (FLYT, section 3.4).

    Args:
        scoring_model: "paper" for Table 2, a .safetensors file of ours, or the published
            `mflyt.pt`.
        allow_missing_scores: mix the columns that exist where the model has more.

    Raises:
        InputError: the model cannot be read, a column is missing, or it cannot be joined.
    """
    return mixed(mixing.load_mixing_model(str(scoring_model)), "m_flyt", allow_missing_scores)(pool)


def e_flyt(pool: Columns, *, scoring_model: str | Path) -> Scores:
    """E-FLYT: a scoring head on the npz embeddings beside the metadata (FLYT, section 3.4).

    Args:
        scoring_model: a .safetensors file of `datacomp-flyt train`.

    Raises:
        InputError: the head cannot be read or was trained on other embeddings; an embedding cannot
            be used and the pool was opened without `drop_nonfinite`; or the pool is in files.
    """
    return scored_by_head(str(scoring_model))(pool)


def plain_sum(
    pool: Columns,
    *,
    score_columns: Sequence[str] = PUBLISHED_COLUMNS,
    allow_missing_scores: bool = False,
) -> Scores:
    """The sum of raw columns (FLYT, Table 2, "Sum"). For the arguments see `m_flyt`."""
    return mixed(mixing.plain_sum(score_columns), "plain_sum", allow_missing_scores)(pool)


def standardized_sum(
    pool: Columns,
    *,
    score_columns: Sequence[str] = PUBLISHED_COLUMNS,
    allow_missing_scores: bool = False,
) -> Scores:
    """The sum of standardised columns (FLYT, Table 2). For the arguments see `m_flyt`."""
    return mixed(mixing.standardized_sum(score_columns), "standardized_sum", allow_missing_scores)(
        pool
    )


def in_weighted_sum(
    pool: Columns,
    *,
    weight_ratio: float = WEIGHT_RATIO,
    imagenet_accuracies: Mapping[str, float] | None = None,
    allow_missing_scores: bool = False,
) -> Scores:
    """The sum of standardised columns, weighted by ImageNet accuracy (FLYT, Appendix C.5).

    Args:
        weight_ratio: the largest weight over the smallest, above 1.
        imagenet_accuracies: the accuracy by column; those of the paper's Table 2 if None.
        allow_missing_scores: see `m_flyt`.
    """
    model = mixing.in_weighted_sum(weight_ratio, imagenet_accuracies)
    return mixed(model, "in_weighted_sum", allow_missing_scores)(pool)


def hype(pool: Columns, *, allow_missing_scores: bool = False) -> Scores:
    """-d_L + eps_i + eps_t: the plain sum of HYPE's columns, as FLYT compares with it (Table 2)."""
    return mixed(mixing.plain_sum(HYPE_COLUMNS), "hype", allow_missing_scores)(pool)


def neg_clip_loss_norm_sim(
    pool: Columns,
    *,
    score_columns: Sequence[str] = TWO_STAGES,
    first_fraction: float = FIRST_FRACTION,
    fraction_of: str = AVAILABLE,
) -> Scores:
    """NormSim of the examples with the best negCLIPLoss (the two-stage filter of that paper).

    Args:
        score_columns: the column of the first stage and that of the second.
        first_fraction: the share that the first stage keeps.
        fraction_of: "available" for a share of the examples with both scores, "pool" for a share of
            all rows of the metadata.

    Returns:
        the second column, for the examples that the first stage keeps.

    Raises:
        InputError: a column is missing or cannot be joined, or the share cannot be kept.
    """
    check_two_stages(score_columns, first_fraction, fraction_of)
    first, second = pool.read(pool.find(score_columns, otherwise="make both"))
    # float64, and without a score where one of the two stages has none
    values = zeros_like_storage(first, np.float64)
    for rows in blocks(len(first), _BLOCK):
        values[rows] = np.where(np.isnan(first[rows]), np.nan, second[rows])
    del second
    values, first, uids = _with_score(values, first, pool.uids())
    size = _pool_size(pool, len(values))
    base = size.base("--first_fraction", first_fraction, fraction_of, len(values))
    kept = top_fraction_counts(first, uids, first_fraction, pool_size=base)
    _, values, uids = filter_rows((kept, values, uids), lambda counts: counts > 0)
    if len(values) < size.scored:
        say(f"the stage before sampling leaves {len(values):,} examples")
    pool.check_unchanged()
    return Scores(uids, values, "neg_clip_loss_norm_sim", size)


def self_filtering(pool: Columns, *, run_dir: str | Path) -> Scores:
    """Count the draws of each example in the last subset of a finished Self-Filtering run.

    Args:
        run_dir: the folder of the run, `--out` of `datacomp-flyt self_filter`.

    Returns:
        counts, as floats.

    Raises:
        InputError: the run is not finished, or was made from another pool; or the pool is in files.
    """
    return counted_by_run(run_dir)(pool)


# ------------------------------------------------- methods whose options are checked first


def mixed(model: LinearMixingModel, name: str, allow_missing_scores: bool = False) -> ScoringMethod:
    """Return the function that mixes the columns of a pool."""

    def score(pool: Columns) -> Scores:
        known = model.restricted_to(pool.find(model.columns, allow_missing_scores))
        values, used = mixing.mix(known, pool.each_time(known.columns), pool.num_workers)
        for index, column in enumerate(used.columns):
            line = f"  {used.weights[index]:+7.3f}  {column}"
            if used.means is not None and used.stds is not None:
                line += f"  (mean {used.means[index]:.6g}, std {used.stds[index]:.6g})"
            say(line)
        return _scores(pool, values, name, used)

    return score


def of_column(name: str, scorers: Mapping[str, str] = SCORER_OF) -> ScoringMethod:
    """Return the function that takes a column as it is; `scorers` is as in `Columns.find`."""

    def score(pool: Columns) -> Scores:
        return _scores(pool, next(pool.read(pool.find([name], scorers=scorers))), name)

    return score


def scored_by_head(path: str) -> ScoringMethod:
    """Load a scoring head of E-FLYT, and return the function that scores a pool with it."""
    head, source = load_glu_head(path), f"--scoring_model {path}"
    check_features(head, source)

    def score(pool: Columns) -> Scores:
        examples, threads = pool.pool_in_memory(), pool.num_workers
        values = e_flyt_scores(head, examples, threads, pool.drop_nonfinite, source=source)
        return _scores(pool, values, "e_flyt")

    return score


def counted_by_run(run_dir: str | Path) -> ScoringMethod:
    """Check a Self-Filtering run, and return the function that counts its draws in a pool."""
    path = final_subset(Path(run_dir))
    read_subset(path)

    def score(pool: Columns) -> Scores:
        counts = counts_in(pool.pool_in_memory(), path)
        return _scores(pool, counts.astype(np.float64), "self_filtering")

    return score


def check_two_stages(columns: Sequence[str], first_fraction: float, fraction_of: str) -> None:
    """Raise InputError unless there are two columns, and the fraction can be one."""
    check_fraction(first_fraction, "--first_fraction")
    check_fraction_of(fraction_of)
    if len(check_list(columns, "--score_columns")) != 2:
        raise InputError(
            f"--score_columns {' '.join(columns)}: neg_clip_loss_norm_sim wants two, the first "
            "stage's and the second's"
        )


def _scores(
    pool: Columns,
    values: NDArray[np.floating],
    name: str,
    model: LinearMixingModel | None = None,
) -> Scores:
    """Drop the examples without a score, whose value [M] is NaN, once all columns are read."""
    values, uids = _with_score(values, pool.uids())
    pool.check_unchanged()
    return Scores(uids, values, name, _pool_size(pool, len(values)), model)


def _with_score(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the rows of these arrays [M] at which the first is not NaN."""
    kept = filter_rows(arrays, lambda some: ~np.isnan(some))
    if len(kept[0]) < len(arrays[0]):
        gone = len(arrays[0]) - len(kept[0])
        say(f"leaving out {gone:,} examples without a score (of {len(arrays[0]):,})")
    return kept


def _pool_size(pool: Columns, num_scored: int) -> PoolSize:
    return PoolSize(pool.pool.num_listed, num_scored, pool.pool.available is not None)
