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
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datacomp_flyt.errors import InputError, unreadable
from datacomp_flyt.files.folders import Folder, check_unchanged, list_folder
from datacomp_flyt.files.listing import has_ending
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.open_file import Version, is_same, open_file, open_local
from datacomp_flyt.files.output_files import (
    atomic_write,
    check_notes_path,
    check_save_path,
    remove_unfinished,
)
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.parquet_file import open_parquet
from datacomp_flyt.streams import say
from datacomp_flyt.threads import check_num_workers, map_threads

FORMAT = "datacomp_flyt manifest 1"
ENDINGS = (".parquet", ".npz", ".tar")
_BLOCK = 1 << 22
_MOST_NAMES = 3  # files of each kind that a message names
_JOURNAL_HEADS = b'["', b'\n["', b"\n\n"  # first bytes of a journal; each run adds a line end

# Hashes of tars without a member (zeros), as of shards of which no image could be downloaded.
_EMPTY_TARS = {hashlib.sha256(bytes(512 * blocks)).hexdigest() for blocks in range(21)}


@dataclass(frozen=True)
class File:
    """The entry of a file in a manifest.

    Attributes:
        size: the number of bytes.
        sha256: the SHA-256 of the content, in hexadecimal.
        rows: the number of rows of a parquet file; None for other files.
    """

    size: int
    sha256: str
    rows: int | None


Manifest = Mapping[str, File]
"""Files by name, sorted by name."""


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
    journal = check_notes_path(path.with_name(f"{path.name}.hashed.jsonl"), *_JOURNAL_HEADS)
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


def hash_folder(directory: str, flag: str, journal: Path, num_workers: int) -> dict[str, File]:
    """Hash every shard of a folder and its sub-folders.

    Args:
        directory: a local or cloud path.
        flag: the flag that named it, for messages.
        journal: gets a line for each file that is hashed; unchanged files that it lists are not
            read again.
        num_workers: the number of threads.

    Raises:
        InputError: there is no shard, or a shard cannot be read or changes meanwhile.
    """
    folder = list_folder(directory, flag, ENDINGS, recursive=True, needed=ENDINGS)
    known = _read_journal(journal)
    lock = threading.Lock()
    try:
        with journal.open("a") as notes:
            notes.write("\n")  # ends a line that was cut off when a run was killed

            def read(path: str) -> tuple[str, File]:
                name, version = folder.name(path), folder.versions[path]
                if (recorded := known.get(path)) and is_same(path, recorded[0], version):
                    return name, recorded[1]
                file = _hash(folder, path, version)
                with lock:
                    notes.write(json.dumps([path, version, asdict(file)]) + "\n")
                    notes.flush()
                return name, file

            actual = map_threads(read, folder.versions, num_workers, "hashing")
    except OSError as error:
        raise InputError(f"{journal} cannot be written ({error.strerror or error})") from None
    return dict(sorted(actual))


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
            manifest[str(entry["name"])] = _file(entry)
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
        folder.name(path): File(size, manifest[name].sha256, manifest[name].rows)
        if (name := folder.name(path)) in manifest
        else File(size, "", None)
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


def _hash(folder: Folder, path: str, version: Version) -> File:
    try:
        digest, size = hashlib.sha256(), 0
        with open_file(folder.fs, path, version) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
            rows = None
            if has_ending(path, ".parquet"):
                file.seek(0)
                rows = int(open_parquet(file).metadata.num_rows)
    except InputError:
        raise
    except Exception as error:  # Arrow and filesystems raise a dozen kinds
        sentence = f"{path} cannot be read ({error}): download or write it again"
        raise unreadable(sentence, error) from None
    check_unchanged(folder.fs, {path: version})
    if size != version.size:
        raise InputError(f"{path} gave {size:,} of its {version.size:,} bytes: run this again")
    return File(size, digest.hexdigest(), rows)


def _read_journal(path: Path) -> dict[str, tuple[Version, File]]:
    """Read the journal of a killed run, by path, without an incomplete last line.

    Journals of older releases lack the inode, so their files are hashed again.
    """
    known: dict[str, tuple[Version, File]] = {}
    if not path.exists():
        return known
    for line in path.read_bytes().split(b"\n"):
        try:
            name, (size, mark, changed, inode), entry = json.loads(line)
            file = _file(entry)
            if file.size == size:
                known[name] = (Version(size, str(mark), changed, inode), file)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return known


def _file(entry: Any) -> File:
    """Parse the entry of a file. Raises TypeError or KeyError if it is not valid."""
    size, sha256, rows = (entry[name] for name in ("size", "sha256", "rows"))
    if type(size) is not int or type(sha256) is not str or type(rows) not in (int, type(None)):
        raise TypeError(f"size {size!r}, sha256 {sha256!r}, rows {rows!r}")
    return File(size, sha256, rows)


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
    with lock_outputs(check_notes_path(journal, *_JOURNAL_HEADS)):
        try:
            yield journal
        finally:
            journal.unlink(missing_ok=True)
