"""Run open_clip's trainer, or DataComp's train.py, on weighted examples or a subset."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from datacomp_flyt.distributed.torchrun_ranks import place_of_torchrun
from datacomp_flyt.installation import needs_extra


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.usage = "%(prog)s [flags] -- SCRIPT ARGS...   or   %(prog)s [flags] -- -m MODULE ARGS..."
    parser.add_argument(
        "--weights",
        metavar="W.parquet",
        help="weight of each example, at least 0: `uid` and a number, a file or a folder",
    )
    parser.add_argument(
        "--scores",
        metavar="S.parquet",
        help="or a score of each example, whose softmax over a batch is its weight there",
    )
    parser.add_argument("--column", metavar="NAME", help="of several columns of numbers")
    parser.add_argument(
        "--missing_value",
        type=float,
        metavar="X",
        help="weight or score of examples that the table lacks (default: stop there)",
    )
    parser.add_argument(
        "--scoring_model",
        metavar="FILE",
        help="or flyt.pt, or a .safetensors head trained on features made from images: scores each "
        "batch as it comes",
    )
    parser.add_argument(
        "--extractor_model",
        default="ViT-B-32",
        metavar="NAME",
        help="model of open_clip that makes these features (default: %(default)s)",
    )
    parser.add_argument(
        "--extractor_checkpoint",
        metavar="FILE",
        help="its weights (default: what flyt.pt holds itself)",
    )
    parser.add_argument(
        "--subset",
        metavar="S.npy",
        help="train on these uids, each as often as it is there, out of the original shards",
    )
    parser.add_argument(
        "--available",
        metavar="FILE",
        help="list of the images at hand (`datacomp-flyt available`), to say how many draws of the "
        "subset have one; not needed where img2dataset's parquet lies beside every training tar",
    )
    parser.add_argument(
        "--distinct_in_batch",
        action="store_true",
        help="no pair twice in a contrastive batch: copies move to the next one",
    )
    parser.add_argument(
        "--model_config",
        metavar="FILE.json",
        help="a model that open_clip does not know: its stem is the --model of the script",
    )
    parser.add_argument(
        "--shuffle_seed",
        type=int,
        metavar="N",
        help="seed what open_clip leaves to the clock, its sample shuffle, and the crops of loader "
        "processes: two runs see the same batches, a resumed one those that it would have seen",
    )
    parser.add_argument(
        "--allow_unknown_version", action="store_true", help="of open_clip: try it all the same"
    )
    parser.add_argument("script", nargs="+", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        place_of_torchrun()  # the trainer would say less
    with needs_extra("train"):
        import open_clip  # noqa: F401
        import torch  # noqa: F401
        import webdataset  # noqa: F401
    from datacomp_flyt.open_clip_hook.hook import install_hook
    from datacomp_flyt.open_clip_hook.run_script import run_script

    given = {k: v for k, v in vars(args).items() if k not in ("command", "script")}
    hook = install_hook(**given)
    try:
        run_script(args.script, hook)
    finally:
        hook.remove()
    return 0
