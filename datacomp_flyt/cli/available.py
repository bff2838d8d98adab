"""List the images at hand: make the file that `--available` of other commands takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path, remove_unfinished
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.streams import say
from datacomp_flyt.tars.image_journal import Journal
from datacomp_flyt.tars.image_list import read_images, write_list
from datacomp_flyt.threads import default_num_workers


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "shards",
        metavar="SHARDS",
        help="the pool's tars: a folder, a pattern with braces, or what webdataset opens; "
        "img2dataset's parquet beside a tar saves reading it",
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
        default=default_num_workers(),
        help="threads for tables, processes for tars (default: all cores)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the list.

    Raises:
        InputError: a tar cannot be read and that is not allowed, or there is no image.
    """
    with needs_extra("train"):
        from datacomp_flyt.tars.shards import list_shards

    if args.num_workers < 1:
        raise InputError(f"--num_workers is {args.num_workers}, wanted 1 or more")
    shards = list_shards(args.shards, "SHARDS")
    path = check_save_path(args.save_path, "--save_path")
    journal_path = check_save_path(path.with_name(f"{path.name}.tars"), "the notes")
    check_outputs([Output("--save_path", path), Output("the notes", journal_path)], vars(args))
    with lock_outputs(path, journal_path):
        remove_unfinished(path)
        images = read_images(shards, args.num_workers, Journal(journal_path))
        if not args.allow_unreadable:
            images.check_readable("list what can be read of them with --allow_unreadable")
        number = write_list(path, images)
        for fact in images.describe():
            say(f"  {fact}")
        journal_path.unlink()
    say(f"saved {path}: {number:,} examples with an image")
    return 0
