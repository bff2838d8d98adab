"""Manifests: the names, sizes and hashes of the files in a folder of shards.

    {"format": "datacomp_flyt manifest 1",
     "files": [{"name": "00000000.parquet", "size": 1234, "sha256": "...", "rows": 100}, ...]}

Names are relative to the folder and sorted; only parquet files have rows. A journal beside the
manifest has a line for each file that has been hashed, so that a killed command resumes. It is
removed when the command ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.open_file import open_local
from datacomp_flyt.files.output_files import (
    atomic_write,
    check_notes_path,
    check_save_path,
    remove_unfinished,
)
from datacomp_flyt.pool.folder_hashes import (
    ENDINGS,
    JOURNAL_HEADS,
    HashedFile,
    Manifest,
    hash_folder,
    parse_file,
)
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.streams import say
from datacomp_flyt.threads import check_num_workers

FORMAT = "datacomp_flyt manifest 1"
_MOST_NAMES = 3  # files of each kind that a message names

# Hashes of tars without a member (zeros), as of shards of which no image could be downloaded.
_EMPTY_TARS = {hashlib.sha256(bytes(512 * blocks)).hexdigest() for blocks in range(21)}


def write_manifest(
    folder: str | Path, *, save_path: str | Path, num_workers: int | None = None
) -> Manifest:
    """Hash the parquet, npz and tar files of a folder and save their manifest.

    Args:
        folder: a local or cloud path; sub-folders are included.
        save_path: the .json file to write.
        num_workers: the number of threads; one per core by default.

    Returns:
        the manifest that was written.

    Raises:
        InputError: the folder has no such file, a file cannot be read or changes meanwhile, two
            files have the same content, or the manifest cannot be written.
    """
    num_workers = check_num_workers(num_workers)
    path = check_save_path(save_path, "--save_path")
    journal = check_notes_path(path.with_name(f"{path.name}.hashed.jsonl"), *JOURNAL_HEADS)
    outputs = [Output("--save_path", path), Output("the notes", journal)]
    check_outputs(outputs, {"folder": folder})
    with lock_outputs(journal):
        remove_unfinished(path)
        manifest = hash_folder(str(folder), "the folder", journal, num_workers)
        save_manifest(path, manifest)
        journal.unlink()
    say(f"{path}: {len(manifest):,} files, {_num_bytes(manifest):,} bytes")
    return manifest


def check_manifest(
    folder: str | Path,
    *,
    manifest: str | Path,
    fast: bool = False,
    num_workers: int | None = None,
) -> Manifest:
    """Check that a folder has exactly the files of a manifest. Differences are printed.

    Args:
        folder: a local or cloud path; sub-folders are included.
        manifest: the .json file of `write_manifest`.
        fast: compare names and sizes only, without reading the files.
        num_workers: the number of threads; one per core by default.

    Returns:
        the manifest.

    Raises:
        InputError: files are missing, additional or changed; or a file cannot be read.
    """
    num_workers = check_num_workers(num_workers)
    if fast:
        wanted = check_against(str(manifest), str(folder), "the folder")
        say(f"{folder} has the files of {manifest}, by names and sizes")
        return wanted
    wanted = read_manifest(manifest)
    with _journal_of_check(Path(manifest)) as journal:
        actual = hash_folder(str(folder), "the folder", journal, num_workers)
    different = differences(wanted, actual)
    for kind, names in different.items():
        for name in names:
            say(f"{kind}: {name}")
    refuse_differences(different, manifest, str(folder), "the folder")
    say(f"{folder} is what {manifest} says: {len(actual):,} files, {_num_bytes(actual):,} bytes")
    return wanted


def save_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest to a file.

    Raises:
        InputError: two files have the same content, or the path cannot be written.
    """
    check_copies(manifest, f"manifest {path}")
    files = [{"name": name, **asdict(file)} for name, file in manifest.items()]
    with atomic_write(path) as file:
        file.write(json.dumps({"format": FORMAT, "files": files}, indent=1).encode() + b"\n")


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest from a file.

    Raises:
        InputError: the file cannot be read, is no manifest, or lists the same content twice.
    """
    try:
        with open_local(str(path)) as file:
            content: Any = json.loads(file.read())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        manifest = {}
        for entry in content["files"]:
            manifest[str(entry["name"])] = parse_file(entry)
    except OSError as error:
        raise InputError(f"manifest {path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is no manifest ({error}): make one with `datacomp-flyt manifest`"
        ) from None
    check_copies(manifest, f"manifest {path}")
    return manifest


def check_copies(manifest: Manifest, source: str) -> None:
    """Raise InputError if two files have the same content: their examples would count twice."""
    empty = {os.path.splitext(name)[0] for name, file in manifest.items() if file.rows == 0}
    first: dict[tuple[str, str], str] = {}
    for name, file in manifest.items():
        stem, ending = os.path.splitext(name)
        if stem in empty or file.sha256 in _EMPTY_TARS:
            continue
        other = first.setdefault((ending, file.sha256), name)
        if other != name:
            raise InputError(
                f"{source}: {other} and {name} are the same file twice (sha256 {file.sha256}): "
                "remove the copy"
            )


def check_against(path: str, directory: str, flag: str) -> Manifest:
    """Compare the names and sizes of a folder's files with a manifest, without reading them.

    Args:
        path: the path of the manifest.
        directory: a local or cloud path.
        flag: the flag that named the folder, for messages.

    Returns:
        the manifest.

    Raises:
        InputError: files are missing, additional or of another size; or see `read_manifest`.
    """
    manifest = read_manifest(path)
    folder = list_folder(directory, flag, ENDINGS, recursive=True)
    actual = {
        folder.name(path): HashedFile(size, manifest[name].sha256, manifest[name].rows)
        if (name := folder.name(path)) in manifest
        else HashedFile(size, "", None)
        for path, (size, *_) in folder.versions.items()
    }
    refuse_differences(differences(manifest, actual), path, directory, flag)
    return manifest


def differences(manifest: Manifest, actual: Manifest) -> dict[str, list[str]]:
    """Names of the files that are `missing`, `additional` or `changed`, each list sorted."""
    return {
        "missing": sorted(manifest.keys() - actual.keys()),
        "additional": sorted(actual.keys() - manifest.keys()),
        "changed": sorted(n for n in manifest.keys() & actual.keys() if manifest[n] != actual[n]),
    }


def refuse_differences(
    different: Mapping[str, list[str]], path: str | Path, directory: str, flag: str
) -> None:
    """Raise InputError if there are differences; the message names the first of each kind."""
    parts = []
    for kind, names in different.items():
        if names:
            rest = len(names) - _MOST_NAMES
            more = f" and {rest:,} more" if rest > 0 else ""
            parts.append(f"{len(names):,} {kind}: {', '.join(names[:_MOST_NAMES])}{more}")
    if parts:
        raise InputError(
            f"{flag} {directory} is not what manifest {path} says ({'; '.join(parts)}): bring "
            "those files back, or make a new manifest if the folder is right"
        )


def _num_bytes(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.values())


@contextlib.contextmanager
def _journal_of_check(path: Path) -> Iterator[Path]:
    """Yield the path of a check's journal, and remove the journal however the check ends.

    Only a killed check leaves its journal and is resumed. Any other check reads all files again,
    since a damaged file may keep its size and time. If the manifest lies on a read-only disk, the
    journal is a temporary file.
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
    with lock_outputs(check_notes_path(journal, *JOURNAL_HEADS)):
        try:
            yield journal
        finally:
            journal.unlink(missing_ok=True)
