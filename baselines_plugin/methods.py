"""From the flags to a score for each example, method by method."""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from baselines_plugin.columns import Columns
from datacomp_flyt import mixing
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.subset import check_save_path


def one_column(args: argparse.Namespace, columns: Columns) -> NDArray[np.floating]:
    """The column `--score` as it is."""
    if args.score is None:
        raise InputError(
            f"--name {args.name} wants --score COLUMN, such as clip_l14_similarity_score"
        )
    return next(columns.read(columns.find([args.score])))


def m_flyt(args: argparse.Namespace, columns: Columns) -> NDArray[np.floating]:
    """M-FLYT's linear mixing model."""
    if args.scoring_model is None:
        raise InputError("--name m_flyt wants --scoring_model: 'paper' or a file")
    return _mix(mixing.load_mixing_model(args.scoring_model), args, columns)


def plain_sum(args: argparse.Namespace, columns: Columns) -> NDArray[np.floating]:
    """Sum of raw columns."""
    model = mixing.sum_of(args.score_columns) if args.score_columns else mixing.sum_of()
    return _mix(model, args, columns)


def standardized_sum(args: argparse.Namespace, columns: Columns) -> NDArray[np.floating]:
    """Sum of standardised columns."""
    chosen = args.score_columns
    model = mixing.standardized_sum(chosen) if chosen else mixing.standardized_sum()
    return _mix(model, args, columns)


def in_weighted_sum(args: argparse.Namespace, columns: Columns) -> NDArray[np.floating]:
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
    return _mix(mixing.in_weighted_sum(ratio, accuracies), args, columns)


def _mix(
    model: mixing.LinearMixingModel, args: argparse.Namespace, columns: Columns
) -> NDArray[np.float64]:
    there = columns.find(model.columns, args.allow_missing_scores)
    model = model.restricted_to(there)
    save_to = args.save_scoring_model
    path = check_save_path(save_to, "--save_scoring_model") if save_to else None
    scores, model = mixing.mix(model, columns.read(model.columns), columns.num_workers)
    for number, column in enumerate(model.columns):
        line = f"  {model.weights[number]:+7.3f}  {column}"
        if model.means is not None and model.stds is not None:
            line += f"  (mean {model.means[number]:.6g}, std {model.stds[number]:.6g})"
        print(line)
    if path is not None:
        mixing.save_mixing_model(model, path)
        print(f"saved the mixing model as {path}")
    return scores
