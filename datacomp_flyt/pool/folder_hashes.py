"""Hashes the files of a folder of shards, and resumes by a journal of the hashed files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datacomp_flyt.errors import InputError, unreadable
from datacomp_flyt.files.folders import Folder, check_unchanged, list_folder
from datacomp_flyt.files.listing import has_ending
from datacomp_flyt.files.open_file import Version, is_same, open_file
from datacomp_flyt.pool.parquet_file import open_parquet
from datacomp_flyt.threads import map_threads

ENDINGS = (".parquet", ".npz", ".tar")
JOURNAL_HEADS = b'["', b'\n["', b"\n\n"
"""The first bytes that a journal may have; each run adds the end of a line."""

_BLOCK = 1 << 22  # bytes read at once


@dataclass(frozen=True)
class HashedFile:
    """The entry of a file in a manifest.

    Attributes:
        size: the number of bytes.
        sha256: the SHA-256 of the content, in hexadecimal.
        rows: the number of rows of a parquet file; None for other files.
    """

    size: int
    sha256: str
    rows: int | None


Manifest = Mapping[str, HashedFile]
"""Files by name, sorted by name."""


def hash_folder(
    directory: str, flag: str, journal: Path, num_workers: int
) -> dict[str, HashedFile]:
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

            def read(path: str) -> tuple[str, HashedFile]:
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


def _hash(folder: Folder, path: str, version: Version) -> HashedFile:
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
    return HashedFile(size, digest.hexdigest(), rows)


def _read_journal(path: Path) -> dict[str, tuple[Version, HashedFile]]:
    """Read the journal of a killed run, by path, without an incomplete last line.

    Journals of older releases lack the inode, so their files are hashed again.
    """
    known: dict[str, tuple[Version, HashedFile]] = {}
    if not path.exists():
        return known
    for line in path.read_bytes().split(b"\n"):
        try:
            name, (size, mark, changed, inode), entry = json.loads(line)
            file = parse_file(entry)
            if file.size == size:
                known[name] = (Version(size, str(mark), changed, inode), file)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return known


def parse_file(entry: Any) -> HashedFile:
    """Parse the entry of a file. Raises TypeError or KeyError if it is not valid."""
    size, sha256, rows = (entry[name] for name in ("size", "sha256", "rows"))
    if type(size) is not int or type(sha256) is not str or type(rows) not in (int, type(None)):
        raise TypeError(f"size {size!r}, sha256 {sha256!r}, rows {rows!r}")
    return HashedFile(size, sha256, rows)
