"""Write sizes and hashes of a folder of shards, or check a folder against them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.manifest import check_manifest, write_manifest


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "folder", help="folder of parquet, npz and tar files, sub-folders too: local or cloud"
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--save_path", metavar="FILE.json", help="write the folder's manifest here")
    mode.add_argument("--check", metavar="FILE.json", help="check the folder against this manifest")
    parser.add_argument(
        "--fast", action="store_true", help="check names and sizes only, without reading files"
    )
    parser.add_argument("--num_workers", type=int, help="number of threads (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Write or check a manifest; see `write_manifest` and `check_manifest`."""
    if args.check:
        check_manifest(
            args.folder, manifest=args.check, fast=args.fast, num_workers=args.num_workers
        )
        return 0
    if args.fast:
        raise InputError("--fast is for --check: a manifest has hashes, so leave it out")
    write_manifest(args.folder, save_path=args.save_path, num_workers=args.num_workers)
    return 0
