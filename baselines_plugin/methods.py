"""From the flags to what scores the examples, method by method."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt import mixing
from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS
from datacomp_flyt.scorers.e_flyt import check_features, e_flyt_scores
from datacomp_flyt.scorers.glu_head_file import load_glu_head

Scored = tuple[NDArray[np.floating], mixing.LinearMixingModel | None]
"""Scores [M], NaN for examples to leave out, and the mixing model that made them, if one did."""

Scorer = Callable[[Columns], Scored]
"""From the columns at hand to scores. Each function below makes one of the flags."""


def one_column(args: argparse.Namespace) -> Scorer:
    """The column `--score` as it is."""
    if args.score is None:
        raise InputError(
            f"--name {args.name} wants --score COLUMN, such as clip_l14_similarity_score"
        )
    return lambda columns: (next(columns.read(columns.find([args.score]))), None)


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
        e_flyt_scores(head, columns.pool, columns.num_workers, args.drop_nonfinite, source=source),
        None,
    )


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
    ratio = 8.0 if args.weight_ratio is None else args.weight_ratio
    return _mix(args, mixing.in_weighted_sum(ratio, accuracies))


def _mix(args: argparse.Namespace, wanted: mixing.LinearMixingModel) -> Scorer:
    def score(columns: Columns) -> Scored:
        model = wanted.restricted_to(columns.find(wanted.columns, args.allow_missing_scores))
        scores, model = mixing.mix(model, columns.read(model.columns), columns.num_workers)
        for number, column in enumerate(model.columns):
            line = f"  {model.weights[number]:+7.3f}  {column}"
            if model.means is not None and model.stds is not None:
                line += f"  (mean {model.means[number]:.6g}, std {model.stds[number]:.6g})"
            print(line)
        return scores, model

    return score
