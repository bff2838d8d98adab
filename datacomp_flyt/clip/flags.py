"""Flags of the commands that read images or embeddings."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from datacomp_flyt.errors import InputError

BATCH_SIZE = 256
IMAGE_FLAGS = ("precision", "batch_size", "decode_threads")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add `--precision`, of matrix products."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the factors of matrix products (default: fp32)",
    )


def add_image_arguments(
    parser: argparse.ArgumentParser, flags: Collection[str] = IMAGE_FLAGS
) -> None:
    """Add `--precision`, `--batch_size` and `--decode_threads`, or those of them in `flags`."""
    if "precision" in flags:
        add_precision(parser)
    if "batch_size" in flags:
        parser.add_argument(
            "--batch_size",
            type=int,
            default=BATCH_SIZE,
            help="images at once (default: %(default)s)",
        )
    if "decode_threads" in flags:
        parser.add_argument(
            "--decode_threads",
            type=int,
            metavar="N",
            help="threads that decode images in each worker (default: 1 on a CPU; on GPUs the "
            "cores divided by the GPUs)",
        )


def check_image_arguments(batch_size: int, decode_threads: int | None) -> None:
    """Raise InputError if a number of `add_image_arguments` is not positive."""
    for flag, value in (("batch_size", batch_size), ("decode_threads", decode_threads)):
        if value is not None and value < 1:
            raise InputError(f"--{flag} {value} is less than 1: give 1 or more")
