"""From the flags to what scores the examples, method by method."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baselines_plugin.sampling import Counts, PoolSize, Sampler
from datacomp_flyt import mixing
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.memmap_arrays import filter_rows, zeros_like_storage
from datacomp_flyt.mixing.columns import Columns, check_named_once
from datacomp_flyt.mixing.published import HYPE_COLUMNS, PUBLISHED_COLUMNS
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.samplers import top_fraction_counts
from datacomp_flyt.scorers.e_flyt.e_flyt import check_features, e_flyt_scores
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head
from datacomp_flyt.self_filtering.finished import final_mix
from datacomp_flyt.self_filtering.mix import counts_in
from datacomp_flyt.streams import say
from datacomp_flyt.threads import blocks

_BLOCK = 1 << 20

Scored = tuple[NDArray[np.floating], mixing.LinearMixingModel | None]
"""Scores [M] and the mixing model that made them, if one did. NaN is for examples to leave out,
-inf for those that count as part of the pool and are not to be drawn."""

Scorer = Callable[[Columns], Scored]
"""From the columns at hand to scores. Each function below makes one of the flags."""


def pool_size(columns: Columns, num_scored: int, args: argparse.Namespace) -> PoolSize:
    """The numbers that a fraction may be taken of, once columns have been read."""
    pool = columns.pool
    return PoolSize(pool.num_listed, num_scored, pool.available is not None, args.fraction_of)


def one_column(args: argparse.Namespace) -> Scorer:
    """The column `--score` as it is."""
    if args.score is None:
        raise InputError(
            f"--name {args.name} wants --score COLUMN, such as clip_l14_similarity_score"
        )
    return column(args.score)(args)


def column(published: str) -> Callable[[argparse.Namespace], Scorer]:
    """A published column as it is; `--score` names another."""

    def make(args: argparse.Namespace) -> Scorer:
        name = args.score or published
        return lambda columns: (next(columns.read(columns.find([name]))), None)

    return make


def hype(args: argparse.Namespace) -> Scorer:
    """-d_L + eps_i + eps_t, not standardised (spec: HYPE as FLYT compares with it)."""
    return _mix(args, mixing.sum_of(HYPE_COLUMNS))


def neg_clip_loss_norm_sim(args: argparse.Namespace) -> Scorer:
    """NormSim of the top `--first_fraction` by negCLIPLoss, both counted of the whole pool."""
    names = args.score_columns or ("negCLIPLoss", "normsim_inf")
    if len(names) != 2:
        raise InputError(
            f"--score_columns {' '.join(names)}: --name {args.name} wants two, the first stage's "
            "and the second's"
        )
    fraction = 0.3 if args.first_fraction is None else args.first_fraction

    def score(columns: Columns) -> Scored:
        first, second = columns.read(columns.find(names, otherwise="make both"))
        scores, parts = zeros_like_storage(first, np.float64), blocks(len(first), _BLOCK)
        for part in parts:
            scores[part] = np.where(np.isnan(second[part]), np.nan, first[part])
        scored, uids = filter_rows((scores, columns.uids()), lambda some: ~np.isnan(some))
        size = pool_size(columns, len(scored), args).base("--first_fraction", fraction, len(scored))
        kept, row = top_fraction_counts(scored, uids, fraction, pool_size=size), 0
        for part in parts:
            places = np.flatnonzero(~np.isnan(scores[part])) + part.start
            chosen = kept[row : row + len(places)] > 0
            scores[places] = np.where(chosen, second[places], -np.inf)
            row += len(places)
        return scores, None

    return score


def m_flyt(args: argparse.Namespace) -> Scorer:
    """M-FLYT's linear mixing model."""
    if args.scoring_model is None:
        raise InputError("--name m_flyt wants --scoring_model: 'paper' or a file")
    return _mix(args, mixing.load_mixing_model(args.scoring_model))


def flyt(args: argparse.Namespace) -> Scorer:
    """E-FLYT's scoring head on the embeddings beside the metadata."""
    if args.scoring_model is None:
        raise InputError("--name flyt wants --scoring_model: a file of E-FLYT training")
    for flag in ("scores_dir", "allow_partial_scores"):
        if getattr(args, flag):
            raise InputError(
                f"--{flag} has no meaning for --name flyt, which reads embeddings: leave it out"
            )
    head, source = load_glu_head(args.scoring_model), f"--scoring_model {args.scoring_model}"
    check_features(head, source)
    return lambda columns: (
        e_flyt_scores(
            head, columns.pool_in_memory(), columns.num_workers, args.drop_nonfinite, source=source
        ),
        None,
    )


def self_filtering(args: argparse.Namespace) -> Scorer:
    """How often the last mix of a finished run draws each example."""
    if args.run_dir is None:
        raise InputError(
            "--name self_filtering wants --run_dir: --out of `datacomp-flyt self_filter`"
        )
    path = final_mix(Path(args.run_dir))
    read_subset(path)
    return lambda columns: (counts_in(columns.pool_in_memory(), path).astype(np.float64), None)


def as_counted(args: argparse.Namespace) -> Sampler:
    """The scores are the counts."""

    def sample(scores: NDArray[np.floating], uids: NDArray[np.void], size: PoolSize) -> Counts:
        return scores.astype(np.int32)

    return sample


def plain_sum(args: argparse.Namespace) -> Scorer:
    """Sum of raw columns."""
    return _mix(args, mixing.sum_of(args.score_columns or PUBLISHED_COLUMNS))


def standardized_sum(args: argparse.Namespace) -> Scorer:
    """Sum of standardised columns."""
    return _mix(args, mixing.standardized_sum(args.score_columns or PUBLISHED_COLUMNS))


def in_weighted_sum(args: argparse.Namespace) -> Scorer:
    """Sum of standardised columns weighted by ImageNet accuracy."""
    accuracies = None
    if args.imagenet_accuracies:
        try:
            pairs = [pair.rsplit("=", 1) for pair in args.imagenet_accuracies]
            accuracies = {column: float(value) for column, value in pairs}
        except ValueError:
            raise InputError(
                f"--imagenet_accuracies {' '.join(args.imagenet_accuracies)}: wanted "
                "COLUMN=VALUE pairs, such as DFN-FT=0.342"
            ) from None
        check_named_once([column for column, _ in pairs], "--imagenet_accuracies")
    ratio = 8.0 if args.weight_ratio is None else args.weight_ratio
    return _mix(args, mixing.in_weighted_sum(ratio, accuracies))


def _mix(args: argparse.Namespace, wanted: mixing.LinearMixingModel) -> Scorer:
    def score(columns: Columns) -> Scored:
        model = wanted.restricted_to(columns.find(wanted.columns, args.allow_missing_scores))
        scores, model = mixing.mix(model, columns.each_time(model.columns), columns.num_workers)
        for number, column in enumerate(model.columns):
            line = f"  {model.weights[number]:+7.3f}  {column}"
            if model.means is not None and model.stds is not None:
                line += f"  (mean {model.means[number]:.6g}, std {model.stds[number]:.6g})"
            say(line)
        return scores, model

    return score
