"""Run open_clip's trainer, or DataComp's train.py, on weighted examples or a subset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.installation import needs_extra


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the flags of `train_clip`, and the script with its own flags."""
    parser.usage = "%(prog)s [flags] -- SCRIPT ARGS...   or   %(prog)s [flags] -- -m MODULE ARGS..."
    _add_weights(parser)
    _add_data(parser)
    parser.add_argument(
        "--allow_unknown_version",
        action="store_true",
        help="accept a version of open_clip that was not tested",
    )
    parser.add_argument("script", nargs="+", help=argparse.SUPPRESS)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the flags that weigh examples."""
    parser.add_argument(
        "--weights",
        metavar="W.parquet",
        help="weight of each example, at least 0: parquet of `uid` and a number, a file or folder",
    )
    parser.add_argument(
        "--scores",
        metavar="S.parquet",
        help="score of each example instead; its softmax over a batch gives the weights",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="column of --weights or --scores, if they have several"
    )
    parser.add_argument(
        "--missing_value",
        type=float,
        metavar="X",
        help="weight or score of examples that are not in the table (default: refuse them)",
    )
    parser.add_argument(
        "--scoring_model",
        metavar="FILE",
        help="score each batch with this model instead: flyt.pt, or a .safetensors head trained on "
        "features made from images",
    )
    parser.add_argument(
        "--extractor_model",
        metavar="NAME",
        help="model of open_clip that makes these features (default: ViT-B-32)",
    )
    parser.add_argument(
        "--extractor_checkpoint",
        metavar="FILE",
        help="weights of that model (default: those in flyt.pt)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the subset, of the batches and of the model's configuration."""
    parser.add_argument(
        "--subset",
        metavar="S.npy",
        help="train on these uids, each as often as it is drawn, from the original shards",
    )
    parser.add_argument(
        "--available",
        metavar="FILE",
        help="list of the images (`datacomp-flyt available`), to count the draws of the subset "
        "that have one; not needed if img2dataset's parquet lies beside every training tar",
    )
    parser.add_argument(
        "--distinct_in_batch",
        action="store_true",
        help="move repeats of a pair out of each contrastive batch, into the next one",
    )
    parser.add_argument(
        "--model_config",
        metavar="FILE.json",
        help="configuration of a model that open_clip does not have; the script's --model is the "
        "file's stem",
    )
    parser.add_argument(
        "--shuffle_seed",
        type=int,
        metavar="N",
        help="seed open_clip's sample shuffle, which it seeds by the clock, and the crops of "
        "loader processes: two runs see the same batches, and so does a resumed run",
    )


def run(args: argparse.Namespace) -> int:
    """Train CLIP; see `train_clip`."""
    with needs_extra("train"):
        import open_clip  # noqa: F401
        import torch  # noqa: F401
        import webdataset  # noqa: F401
    from datacomp_flyt.open_clip_hook.train_clip import train_clip

    given = {
        name: value
        for name, value in vars(args).items()
        if name not in ("command", "script") and value is not None
    }
    train_clip(args.script, **given)
    return 0
