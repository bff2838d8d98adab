"""Sizes and hashes of a folder of shards: write them, or check a folder by them."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_notes_path, check_save_path, remove_unfinished
from datacomp_flyt.pool.manifest import (
    NOTES_BEGIN,
    check_against,
    differences,
    hash_folder,
    read_manifest,
    refuse_differences,
    write_manifest,
)
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers


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
        say(f"{args.folder} has the files of {args.check}, by names and sizes")
        return 0
    return _check(args) if args.check else _save(args)


def _save(args: argparse.Namespace) -> int:
    path = check_save_path(args.save_path, "--save_path")
    journal = check_notes_path(path.with_name(f"{path.name}.hashed.jsonl"), *NOTES_BEGIN)
    check_outputs([Output("--save_path", path), Output("the notes", journal)], vars(args))
    with lock_outputs(journal):
        remove_unfinished(path)
        found = hash_folder(args.folder, "the folder", journal, args.num_workers)
        write_manifest(path, found)
        journal.unlink()
    say(f"{path}: {len(found):,} files, {sum(file.size for file in found.values()):,} bytes")
    return 0


def _check(args: argparse.Namespace) -> int:
    manifest = read_manifest(args.check)
    with _journal_of_check(Path(args.check)) as journal:
        found = hash_folder(args.folder, "the folder", journal, args.num_workers)
    different = differences(manifest, found)
    for kind, names in different.items():
        for name in names:
            say(f"{kind}: {name}")
    refuse_differences(different, args.check, args.folder, "the folder")
    size = sum(file.size for file in found.values())
    say(f"{args.folder} is what {args.check} says: {len(found):,} files, {size:,} bytes")
    return 0


@contextlib.contextmanager
def _journal_of_check(path: Path) -> Iterator[Path]:
    """Notes of a check, gone whenever it ends: the next one is to read all, and only a killed one
    goes on, since what rots keeps its size and time. On a read-only share they lie elsewhere.
    """
    journal = path.with_name(f"{path.name}.checked.jsonl")
    try:
        check_save_path(journal.with_name(f".{journal.name}"), "the notes")
    except InputError:
        say(
            f"{path.parent} cannot be written: if this check is killed, it begins anew",
            error=True,
        )
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, journal.name)
        return
    with lock_outputs(check_notes_path(journal, *NOTES_BEGIN)):
        try:
            yield journal
        finally:
            journal.unlink(missing_ok=True)
