"""A manifest: which files a folder of shards has, how long they are, and their hashes.

    {"format": "datacomp_flyt manifest 1",
     "files": [{"name": "00000000.parquet", "size": 1234, "sha256": "...", "rows": 100}, ...]}

Names are below the folder and sorted; only parquet files have rows. What has been hashed is noted
line by line in a journal beside it, so that a killed command goes on, until the end removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datacomp_flyt.errors import InputError, unreadable
from datacomp_flyt.files.folders import Folder, check_unchanged, list_folder
from datacomp_flyt.files.listing import has_ending
from datacomp_flyt.files.open_file import Version, is_same, open_file, open_local
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.pool.parquet_file import open_parquet
from datacomp_flyt.threads import map_threads

FORMAT = "datacomp_flyt manifest 1"
ENDINGS = (".parquet", ".npz", ".tar")
_BLOCK = 1 << 22
_NAMED = 3  # files of a kind in a sentence

# of tars without a member, such as those of shards of which no image could be downloaded: zeros
_EMPTY_TARS = {hashlib.sha256(bytes(512 * blocks)).hexdigest() for blocks in range(21)}


@dataclass(frozen=True)
class File:
    """What a manifest says of a file.

    Attributes:
        size: bytes.
        sha256: in hexadecimal.
        rows: of a parquet file; None of others.
    """

    size: int
    sha256: str
    rows: int | None


Manifest = Mapping[str, File]
"""Files by name, in the order of names."""

NOTES_BEGIN = b'["', b'\n["', b"\n\n"
"""Bytes that the notes of hashes begin with; a run adds the end of a line first."""


def hash_folder(directory: str, flag: str, journal: Path, num_workers: int) -> dict[str, File]:
    """Read every shard of a folder and its sub-folders.

    Args:
        directory: a local or cloud path.
        flag: what named it, for messages.
        journal: where to note what has been hashed; what is noted there of files that have not
            changed since is not read again.
        num_workers: threads.

    Raises:
        InputError: no shard there, one that cannot be read, or that changes meanwhile.
    """
    folder = list_folder(directory, flag, ENDINGS, recursive=True, needed=ENDINGS)
    known = _read_journal(journal)
    lock = threading.Lock()
    try:
        with journal.open("a") as notes:
            notes.write("\n")  # so that a line which was cut off does not spoil the next one

            def read(path: str) -> tuple[str, File]:
                name, version = folder.name(path), folder.versions[path]
                if (found := known.get(path)) and is_same(path, found[0], version):
                    return name, found[1]
                file = _hash(folder, path, version)
                with lock:
                    notes.write(json.dumps([path, version, asdict(file)]) + "\n")
                    notes.flush()
                return name, file

            found = map_threads(read, folder.versions, num_workers, "hashing")
    except OSError as error:
        raise InputError(f"{journal} cannot be written ({error.strerror or error})") from None
    return dict(sorted(found))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest.

    Raises:
        InputError: two files are one, or the place cannot be written.
    """
    check_copies(manifest, f"manifest {path}")
    files = [{"name": name, **asdict(file)} for name, file in manifest.items()]
    with atomic_write(path) as file:
        file.write(json.dumps({"format": FORMAT, "files": files}, indent=1).encode() + b"\n")


def read_manifest(path: str | Path) -> Manifest:
    """The files of a manifest.

    Raises:
        InputError: it cannot be read, is no manifest, or names one content twice.
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


def check_copies(manifest: Manifest, where: str) -> None:
    """Raise InputError where two files have the same bytes: their examples would count twice."""
    empty = {os.path.splitext(name)[0] for name, file in manifest.items() if file.rows == 0}
    first: dict[tuple[str, str], str] = {}
    for name, file in manifest.items():
        stem, ending = os.path.splitext(name)
        if stem in empty or file.sha256 in _EMPTY_TARS:
            continue
        other = first.setdefault((ending, file.sha256), name)
        if other != name:
            raise InputError(
                f"{where}: {other} and {name} are the same file twice (sha256 {file.sha256}): "
                "remove the copy"
            )


def check_against(path: str, directory: str, flag: str) -> None:
    """Refuse a folder before it is read: by names and sizes, which are known without reading.

    Args:
        path: of the manifest.
        directory: local or cloud.
        flag: what named it.

    Raises:
        InputError: files are missing, additional or of another size; or see `read_manifest`.
    """
    manifest = read_manifest(path)
    folder = list_folder(directory, flag, ENDINGS, recursive=True)
    found = {
        folder.name(path): File(size, manifest[name].sha256, manifest[name].rows)
        if (name := folder.name(path)) in manifest
        else File(size, "", None)
        for path, (size, *_) in folder.versions.items()
    }
    refuse_differences(differences(manifest, found), path, directory, flag)


def differences(manifest: Manifest, found: Manifest) -> dict[str, list[str]]:
    """Names of the files that are `missing`, `additional` or `changed`, each list sorted."""
    return {
        "missing": sorted(manifest.keys() - found.keys()),
        "additional": sorted(found.keys() - manifest.keys()),
        "changed": sorted(n for n in manifest.keys() & found.keys() if manifest[n] != found[n]),
    }


def refuse_differences(
    different: Mapping[str, list[str]], path: str | Path, directory: str, flag: str
) -> None:
    """Raise InputError if there are any; it names the first of each kind."""
    parts = []
    for kind, names in different.items():
        if names:
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            parts.append(f"{len(names):,} {kind}: {', '.join(names[:_NAMED])}{more}")
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
    """The notes of an earlier command, by path, without an incomplete last line.

    Notes of older releases lack the inode, so their files are read again.
    """
    known: dict[str, tuple[Version, File]] = {}
    if not path.exists():
        return known
    for line in path.read_bytes().split(b"\n"):
        try:
            of, (size, mark, changed, inode), entry = json.loads(line)
            file = _file(entry)
            if file.size == size:
                known[of] = (Version(size, str(mark), changed, inode), file)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return known


def _file(entry: Any) -> File:
    """
    Raises:
        TypeError, KeyError: it does not say what it should.
    """
    size, sha256, rows = (entry[name] for name in ("size", "sha256", "rows"))
    if type(size) is not int or type(sha256) is not str or type(rows) not in (int, type(None)):
        raise TypeError(f"size {size!r}, sha256 {sha256!r}, rows {rows!r}")
    return File(size, sha256, rows)
