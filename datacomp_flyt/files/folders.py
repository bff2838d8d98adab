"""Lists folders, local or in a cloud (fsspec), and detects files that change during a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from datacomp_flyt.errors import InputError, first_line, unreadable
from datacomp_flyt.files.listing import (
    PassedOver,
    has_ending,
    is_folder,
    list_cloud,
    list_local,
    resolve_path,
    say_passed_over,
)
from datacomp_flyt.files.open_file import Version as Version
from datacomp_flyt.files.open_file import has_changed, is_same, local_version
from datacomp_flyt.threads import map_threads, retry_on_read_error

_MARKS = ("etag", "ETag", "mtime", "LastModified", "updated", "last_modified", "created")
_MANY = 100  # from this number of files, their folders are listed instead of asking for each


@dataclass(frozen=True)
class Folder:
    """The files of a folder, and their versions when it was listed.

    Attributes:
        fs: the filesystem of the folder.
        root: the path of the folder in the filesystem.
        versions: the versions of the files by path, sorted by path.
    """

    fs: Any
    root: str
    versions: Mapping[str, Version]

    def name(self, path: str) -> str:
        """Return the path of a file relative to the folder."""
        return path[len(self.root.rstrip("/")) + 1 :]


def list_folder(
    directory: str,
    flag: str,
    endings: tuple[str, ...],
    recursive: bool = False,
    needed: tuple[str, ...] = (),
) -> Folder:
    """List the files of a folder that have one of some endings, in any case.

    Links are followed. The number of files that are passed over (see `listing`) is printed once.

    Args:
        directory: a local or cloud path; only a name that begins with `scheme://` goes to fsspec.
        flag: the flag that named the folder, for messages.
        endings: the endings, in lower case.
        recursive: also list sub-folders.
        needed: endings of which at least one file must have one.

    Raises:
        InputError: the folder does not exist, cannot be listed, or has none of the files needed.
    """

    def list_once(directory: str) -> tuple[Folder, PassedOver]:
        return _list(directory, flag, endings, recursive)

    folder, passed_over = retry_on_read_error(list_once)(directory)
    if needed and not any(has_ending(path, needed) for path in folder.versions):
        other = f" (passed over {passed_over})" if passed_over else ""
        raise InputError(
            f"{flag} {directory} holds no {' or '.join(needed)} file{other}: give the folder that "
            "does"
        )
    if folder.versions:
        say_passed_over(f"{flag} {directory}", passed_over)
    return folder


def _list(
    directory: str, flag: str, endings: tuple[str, ...], recursive: bool
) -> tuple[Folder, PassedOver]:
    passed_over = PassedOver()
    try:
        fs, root = resolve_path(directory)
        fs.invalidate_cache()
        if not is_folder(fs, root):
            raise InputError(
                f"{flag} {directory} is not a folder: give one with {' or '.join(endings)} files"
            )
        if isinstance(fs, LocalFileSystem):
            paths = list_local(root, endings, recursive, passed_over)
            versions = {path: version_of(fs, path) for path in paths}
        else:
            infos = list_cloud(fs, root, endings, recursive, passed_over)
            versions = {path: version_of(fs, path, info) for path, info in infos.items()}
    except InputError:
        raise
    except Exception as error:  # clients of clouds raise many types
        sentence = f"{flag} {directory} cannot be listed ({first_line(error)})"
        raise unreadable(sentence, error) from None
    return Folder(fs, root, versions), passed_over


def version_of(fs: Any, path: str, info: Mapping[str, Any] | None = None) -> Version:
    """Return the version of a file.

    Args:
        fs, path: the file.
        info: the filesystem's entry for the file, if it is known.

    Raises:
        OSError: the file does not exist.
    """
    if isinstance(fs, LocalFileSystem):
        return local_version(os.stat(path))
    if info is None or info.get("size") is None:
        info = fs.info(path)
    mark = next((_mark_text(info[name]) for name in _MARKS if info.get(name)), "")
    return Version(int(info["size"] or 0), mark)


def _mark_text(mark: Any) -> str:
    """Normalize a mark, which differs between a listing of a folder and a query of one file.

    A time is a number in one and a `datetime` in the other, and an etag has quotes or none.
    """
    if isinstance(mark, datetime):
        mark = mark.timestamp()
    return f"{mark:.6f}" if isinstance(mark, float) else str(mark).strip('"')


def check_unchanged(fs: Any, versions: Mapping[str, Version]) -> None:
    """Raise InputError, which names the file, if a file has another version than before.

    Versions are only compared for equality; times are not ordered. Queries that storage fails to
    answer are retried, as reads are.

    Args:
        fs: the filesystem of the files.
        versions: the versions that were noted before, by path.
    """

    def list_again(folder: str) -> None:
        with _query(folder), contextlib.suppress(FileNotFoundError):  # `check` reports it
            fs.ls(folder)  # one query for all files, whose answer the filesystem caches

    def check(path: str) -> None:
        try:
            with _query(path):
                same = is_same(path, version_of(fs, path), versions[path])
        except FileNotFoundError as error:
            raise InputError(
                f"{path} was there when this run began to read and cannot be found any more "
                f"({first_line(error)}): nothing may change what a run reads, so run it again"
            ) from None
        if not same:
            raise has_changed(path)

    fs.invalidate_cache()
    if len(versions) > _MANY and not isinstance(fs, LocalFileSystem):
        map_threads(list_again, sorted({path.rsplit("/", 1)[0] for path in versions}), 1)
    map_threads(check, versions, 1)


@contextlib.contextmanager
def _query(path: str) -> Iterator[None]:
    """Turn an error of a filesystem in the block into InputError, except FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # clients of clouds raise many types
        sentence = (
            f"whether {path} has changed since this run began to read cannot be said "
            f"({first_line(error)}): run it again"
        )
        raise unreadable(sentence, error) from None
