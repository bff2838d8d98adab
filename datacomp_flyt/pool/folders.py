"""Folders of files, local or in a cloud (fsspec): what is there, and whether it stays as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.open_file import first_line

Version = tuple[int, str]
"""Of a file: bytes, and what else changes with it where its filesystem knows of that."""

_MARKS = ("etag", "ETag", "mtime", "LastModified", "updated", "last_modified", "created")
_MANY = 100  # files whose folders are listed rather than that each is asked for


@dataclass(frozen=True)
class Folder:
    """Some files of a folder, as they were when it was listed.

    Attributes:
        fs: their filesystem.
        root: path of the folder there.
        versions: by path, in the order of paths.
    """

    fs: Any
    root: str
    versions: Mapping[str, Version]

    def name(self, path: str) -> str:
        """A path below the folder."""
        return path[len(self.root.rstrip("/")) + 1 :]


def list_folder(
    directory: str, flag: str, endings: tuple[str, ...], recursive: bool = False
) -> Folder:
    """The files of a folder that have one of some endings.

    Args:
        directory: a local or cloud path, as fsspec spells them.
        flag: the flag that named it, for messages.
        recursive: look into sub-folders too.

    Raises:
        InputError: no such folder, or one that cannot be listed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(directory)
        fs.invalidate_cache()
        if not fs.isdir(root):
            raise InputError(
                f"{flag} {directory} is not a folder: give one with {' or '.join(endings)} files"
            )
        if recursive:
            found = fs.find(root, detail=True)
        else:
            found = {info["name"]: info for info in fs.ls(root, detail=True)}
        versions = {
            str(path): version_of(fs, str(path), found[path])
            for path in sorted(found)
            if str(path).endswith(endings)
        }
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{flag} {directory} cannot be listed ({first_line(error)})") from None
    return Folder(fs, root, versions)


def version_of(fs: Any, path: str, info: Mapping[str, Any] | None = None) -> Version:
    """The version of a file.

    Args:
        info: what the filesystem says of it, where that is known.

    Raises:
        OSError: it is not there.
    """
    if isinstance(fs, LocalFileSystem):
        stat = os.stat(path)
        return stat.st_size, str(stat.st_mtime_ns)
    if info is None or info.get("size") is None:
        info = fs.info(path)
    return int(info["size"] or 0), next((_said(info[n]) for n in _MARKS if info.get(n)), "")


def _said(mark: Any) -> str:
    """The same whether a filesystem lists a folder or is asked for one of its files.

    A time is a number in one answer and a `datetime` in another, an etag has quotes or none.
    """
    if isinstance(mark, datetime):
        mark = mark.timestamp()
    return f"{mark:.6f}" if isinstance(mark, float) else str(mark).strip('"')


def check_unchanged(fs: Any, versions: Mapping[str, Version]) -> None:
    """Raise InputError, which names the file, unless all files are as they were.

    Only whether versions are equal counts, never which of two times is the later one.
    """
    try:
        fs.invalidate_cache()
        if len(versions) > _MANY and not isinstance(fs, LocalFileSystem):
            for folder in sorted({path.rsplit("/", 1)[0] for path in versions}):
                fs.ls(folder)  # one question for all: the filesystem remembers the answer
    except OSError:
        pass  # each file says so itself
    for path, version in versions.items():
        try:
            same = version_of(fs, path) == version
        except OSError as error:
            raise InputError(
                f"{path} was there when this run began to read and cannot be found any more "
                f"({first_line(error)}): nothing may change what a run reads, so run it again"
            ) from None
        if not same:
            raise InputError(
                f"{path} has changed since this run began to read: nothing may change what a run "
                "reads, so run it again"
            )
