"""Train a linear classifier of a better dataset against the pool (IN1K-, CC2M-Classifier)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.scorers.linear_classifier.train import (
    ARRAYS,
    BUFFER_ROWS,
    TrainingSettings,
    train_classifier,
)

DEFAULTS = TrainingSettings()


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    files = "folders with .npz files, .npz files, or .npy files of one array"
    parser.add_argument(
        "--positives",
        nargs="+",
        required=True,
        metavar="EMBEDDINGS",
        help=f"embeddings of the better dataset: {files}",
    )
    parser.add_argument(
        "--positive_uids",
        metavar="FILE.npy",
        help="of the positives, only those in this subset, such as the top of CC12M for CC2M; "
        "uids are read from the parquet beside each npz",
    )
    parser.add_argument(
        "--negatives",
        nargs="+",
        required=True,
        metavar="METADATA_DIR",
        help=f"embeddings of the pool: {files}",
    )
    parser.add_argument(
        "--arrays",
        nargs="+",
        default=list(ARRAYS),
        metavar="NAME",
        help="npz arrays to take, in this order: b32_img, or b32_img b32_txt (default: b32_img)",
    )
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="what to write")
    parser.add_argument("--steps", type=int, default=DEFAULTS.steps)
    parser.add_argument(
        "--batch_size", type=int, default=DEFAULTS.batch_size, help="half of it positives"
    )
    parser.add_argument("--lr", type=float, default=DEFAULTS.lr, help="the highest")
    parser.add_argument("--warmup", type=int, default=DEFAULTS.warmup, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--renormalize",
        action="store_true",
        help="scale embeddings to unit norm (default: as stored)",
    )
    parser.add_argument(
        "--buffer_rows",
        type=int,
        default=BUFFER_ROWS,
        help="examples of each class in memory, of which batches are drawn: as float16 of width "
        "512, the default of 2,097,152 takes 2 GB where there are as many",
    )


def run(args: argparse.Namespace) -> int:
    """Train and write; the exit code is 0."""
    train_classifier(**{name: value for name, value in vars(args).items() if name != "command"})
    return 0
