"""Train a linear classifier of a better dataset against the pool (IN1K-, CC2M-Classifier)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.scorers.linear_classifier.classifier_file import save_classifier
from datacomp_flyt.scorers.linear_classifier.train import TrainingSettings, train_linear_classifier
from datacomp_flyt.scorers.linear_classifier.training_rows import RandomRows, find_embeddings
from datacomp_flyt.streams import say

_DEFAULTS = TrainingSettings()


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    place = "folders with .npz files, .npz files, or .npy files of one array"
    parser.add_argument(
        "--positives",
        nargs="+",
        required=True,
        metavar="PLACE",
        help=f"embeddings of the better dataset: {place}",
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
        help=f"embeddings of the pool: {place}",
    )
    parser.add_argument(
        "--arrays",
        nargs="+",
        default=["b32_img"],
        metavar="NAME",
        help="npz arrays to take, in this order: b32_img, or b32_img b32_txt (default: b32_img)",
    )
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="what to write")
    parser.add_argument("--steps", type=int, default=_DEFAULTS.steps)
    parser.add_argument(
        "--batch_size", type=int, default=_DEFAULTS.batch_size, help="half of it positives"
    )
    parser.add_argument("--lr", type=float, default=_DEFAULTS.lr, help="the highest")
    parser.add_argument("--warmup", type=int, default=_DEFAULTS.warmup, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--renormalize", action="store_true", help="give embeddings length 1 (default: as stored)"
    )
    parser.add_argument(
        "--buffer_rows",
        type=int,
        default=1 << 21,
        help="examples of each class in memory, of which batches are drawn: as float16 of width "
        "512, the default of 2,097,152 takes 2 GB where there are as many",
    )


def run(args: argparse.Namespace) -> int:
    """Train and write; the exit code is 0."""
    settings = TrainingSettings(args.steps, args.batch_size, args.lr, args.warmup)
    settings.check()
    if args.buffer_rows < args.batch_size:
        raise InputError(
            f"--buffer_rows {args.buffer_rows} is less than --batch_size {args.batch_size}: give "
            "many times more"
        )
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} is negative: give 0 or more")
    if not args.out.endswith(".safetensors"):
        raise InputError(f"--out {args.out} is not a .safetensors file: name one")
    path = check_save_path(args.out, "--out")
    check_outputs([Output("--out", path)], vars(args))
    subset = read_subset(args.positive_uids)[0] if args.positive_uids else None
    files = {
        flag: find_embeddings(places, args.arrays, flag)
        for flag, places in (("--positives", args.positives), ("--negatives", args.negatives))
    }
    first, second = (found[0] for found in files.values())
    if first.width != second.width:
        raise InputError(
            f"--positives {first.path} has embeddings of width {first.width} and --negatives "
            f"{second.path} of {second.width}: take those of one model"
        )
    # a stream of random numbers for each class: how one is read does not change the other
    positives, negatives = (
        RandomRows(
            found,
            np.random.default_rng([args.seed, number]),
            args.buffer_rows,
            flag,
            args.renormalize,
            None if number else subset,
        )
        for number, (flag, found) in enumerate(files.items())
    )
    trained = train_linear_classifier(positives, negatives, args.arrays, settings)
    save_classifier(trained.model, path)
    for name, rows in (("positives", positives), ("negatives", negatives)):
        say(f"{name}: {rows.held:,} examples" + ("" if rows.whole else " in memory at a time"))
        for reason, count in rows.counts.items():
            if count:
                say(f"  {count:,} read: {reason}")
    say(
        f"last {trained.steps:,} steps: loss {trained.loss:.4f} (chance 0.6931), accuracy "
        f"{trained.accuracy:.1%}",
        path,
    )
    return 0
