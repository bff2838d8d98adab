"""Sizes and hashes of a folder of shards: write them, or check a folder by them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.engines.locks import one_run
from datacomp_flyt.engines.threads import default_num_workers
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.manifest import (
    check_against,
    differences,
    hash_folder,
    read_manifest,
    refuse_differences,
    write_manifest,
)
from datacomp_flyt.pool.subset import check_save_path


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "folder", help="of parquet, npz and tar files, sub-folders too: local or cloud"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--save_path", metavar="FILE.json", help="write its manifest here")
    what.add_argument("--check", metavar="FILE.json", help="or check it against this manifest")
    parser.add_argument(
        "--fast", action="store_true", help="check names and sizes only, without reading files"
    )
    parser.add_argument("--num_workers", type=int, default=default_num_workers(), help="threads")


def run(args: argparse.Namespace) -> int:
    """Write or check; 0.

    Raises:
        InputError: the folder is not what the manifest says, or cannot be read.
    """
    if args.num_workers < 1:
        raise InputError(f"--num_workers is {args.num_workers}, wanted 1 or more")
    if args.fast and not args.check:
        raise InputError("--fast is for --check: a manifest has hashes, so leave it out")
    if args.fast:
        check_against(args.check, args.folder, "the folder")
        print(f"{args.folder} has the files of {args.check}, by names and sizes")
        return 0
    manifest = read_manifest(args.check) if args.check else None
    path = Path(args.check) if args.check else check_save_path(args.save_path, "--save_path")
    journal = check_save_path(path.with_name(f"{path.name}.hashed.jsonl"), "the notes")
    with one_run(journal):
        found = hash_folder(args.folder, "the folder", journal, args.num_workers)
        if manifest is None:
            write_manifest(path, found)
        journal.unlink()
    size = sum(file.size for file in found.values())
    if manifest is None:
        print(f"{path}: {len(found):,} files, {size:,} bytes")
        return 0
    different = differences(manifest, found)
    for kind, names in different.items():
        for name in names:
            print(f"{kind}: {name}")
    refuse_differences(different, path, args.folder, "the folder")
    print(f"{args.folder} is what {path} says: {len(found):,} files, {size:,} bytes")
    return 0
