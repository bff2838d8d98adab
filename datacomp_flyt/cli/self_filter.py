"""Self-Filtering-style rounds: train CLIP on a subset, score the pool with it, select anew."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from datacomp_flyt.self_filtering.plan import SelfFilterOptions
from datacomp_flyt.self_filtering.self_filter import self_filter
from datacomp_flyt.self_filtering.settings import (
    CONFIDENT_FRACTION,
    RANDOM_SHARE,
    SCHEDULES,
    SCORES,
    SELECTORS,
    Settings,
)
from datacomp_flyt.self_filtering.trainer_command import split_words


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.usage = "%(prog)s [flags] -- -m open_clip_train.main ARGS...   or   -- train.py ARGS..."
    add = parser.add_argument
    add("--shards_dir", required=True, metavar="TARS", help="the pool: a folder, or a pattern")
    add("--out", required=True, metavar="RUN", help="folder of the run; the same command resumes")
    add("--rounds", type=int, help=f"scorings and selections (default: {Settings.rounds})")
    add(
        "--samples_per_round",
        type=int,
        metavar="N",
        help="samples of a training and draws",
    )
    scores = "; ".join(f"{name}: {text}" for name, text in SCORES.items())
    add("--score", choices=list(SCORES), help=f"{scores} (default: {Settings.score})")
    add(
        "--confident_fraction",
        type=float,
        metavar="F",
        help=f"fraction of the pool selected by score (default: {CONFIDENT_FRACTION})",
    )
    add(
        "--random_share",
        type=float,
        metavar="R",
        help="share of a subset's draws that come from the whole pool "
        f"(default: {RANDOM_SHARE}; closed loop: 0)",
    )
    add("--random_schedule", choices=SCHEDULES, help=f"(default: {Settings.random_schedule})")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--restart", action="store_true", help="train each round from scratch (the default)"
    )
    start.add_argument(
        "--continue", dest="continued", action="store_true", help="from the last round's weights"
    )
    add("--train_last", action="store_true", help="also train on the last subset, as rounds do")
    add("--model", help="open_clip's name of the trainer's model (default: its --model)")
    add("--model_config", metavar="FILE.json", help="a model that open_clip does not know")
    add("--distinct_in_batch", action="store_true", help="no pair twice in a contrastive batch")
    add("--temperature", type=float, help="temperature of info_nce (default: the model's own)")
    add("--info_nce_batch", type=int, help=f"batch size (default: {Settings.info_nce_batch})")
    add(
        "--info_nce_partitions",
        type=int,
        help=f"number of random partitions, K (default: {Settings.info_nce_partitions})",
    )
    add("--seed", type=int, help="seed of halves, shares and shuffles (default: 0)")
    add("--keep_embeddings", action="store_true", help="keep a round's npz")
    add("--no_reports", action="store_true", help="no pages, which need the extra `report`")
    group = parser.add_argument_group("to judge by, where some noise is known")
    group.add_argument("--labels", metavar="FILE", help="parquet of `uid` and `kind`")
    group.add_argument("--noise_kinds", nargs="+", help="kinds that are noise")
    _add_closed_loop(parser)
    add("script", nargs="*", help=argparse.SUPPRESS)


def _add_closed_loop(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("closed-loop FLYT").add_argument
    add(
        "--selector",
        choices=SELECTORS,
        help="m_flyt and e_flyt learn a scoring model in each round, whose reference is the "
        f"round's model (default: {Settings.selector})",
    )
    add("--downstream_dir", help="labelled tars, as `datacomp-flyt train` takes them")
    add("--scores_dir", help="m_flyt: score tables beside those of the round's model")
    add("--score_columns", nargs="+", metavar="COLUMN", help="m_flyt: the columns of these to mix")
    add("--flyt_flags", help="flags of `datacomp-flyt train`, in quotes")
    add(
        "--repetition_penalty",
        type=float,
        help=f"alpha of Soft Cap Sampling (default: {Settings.repetition_penalty})",
    )


def run(args: argparse.Namespace) -> int:
    names = {field.name for field in dataclasses.fields(SelfFilterOptions)}
    given: dict[str, Any] = {
        name: value for name, value in vars(args).items() if name in names and value is not None
    }
    if args.flyt_flags is not None:
        given["flyt_flags"] = split_words(args.flyt_flags, "--flyt_flags")
    self_filter(SelfFilterOptions(trainer=tuple(args.script), reports=not args.no_reports, **given))
    return 0
