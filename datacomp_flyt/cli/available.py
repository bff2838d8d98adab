"""List the images that you have, for `--available` of other commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.tars.image_list import list_images


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "shards",
        metavar="SHARDS",
        help="the pool's tars: a folder, a pattern with braces, or an address that webdataset "
        "opens; img2dataset's parquet beside a tar saves reading it",
    )
    parser.add_argument(
        "--save_path", required=True, metavar="FILE.npy", help="write the list of uids here"
    )
    parser.add_argument(
        "--allow_unreadable",
        action="store_true",
        help="list what can be read of tars that are damaged or missing",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        help="number of threads for tables and processes for tars (default: all cores)",
    )


def run(args: argparse.Namespace) -> int:
    """List images; see `list_images`."""
    list_images(
        args.shards,
        save_path=args.save_path,
        allow_unreadable=args.allow_unreadable,
        num_workers=args.num_workers,
    )
    return 0
