"""Folders of files, local or in a cloud (fsspec): what is there, and whether it stays as it is."""

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
    directory: str,
    flag: str,
    endings: tuple[str, ...],
    recursive: bool = False,
    needed: tuple[str, ...] = (),
) -> Folder:
    """The files of a folder that have one of some endings, in whatever case.

    Links are followed. The number of files that are passed over (see `listing`) is printed once.

    Args:
        directory: a local or cloud path; only a name that begins with `scheme://` goes to fsspec.
        flag: the flag that named it, for messages.
        recursive: look into sub-folders too.
        needed: endings that at least one file must have.

    Raises:
        InputError: no such folder, one that cannot be listed, or none of the files needed.
    """

    def list_(where: str) -> tuple[Folder, PassedOver]:
        return _list(where, flag, endings, recursive)

    folder, passed_over = retry_on_read_error(list_)(directory)
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
            found = list_cloud(fs, root, endings, recursive, passed_over)
            versions = {path: version_of(fs, path, info) for path, info in found.items()}
    except InputError:
        raise
    except Exception as error:  # clients of clouds raise dozens of kinds
        sentence = f"{flag} {directory} cannot be listed ({first_line(error)})"
        raise unreadable(sentence, error) from None
    return Folder(fs, root, versions), passed_over


def version_of(fs: Any, path: str, info: Mapping[str, Any] | None = None) -> Version:
    """The version of a file.

    Args:
        info: what the filesystem says of it, where that is known.

    Raises:
        OSError: it is not there.
    """
    if isinstance(fs, LocalFileSystem):
        return local_version(os.stat(path))
    if info is None or info.get("size") is None:
        info = fs.info(path)
    mark = next((_said(info[n]) for n in _MARKS if info.get(n)), "")
    return Version(int(info["size"] or 0), mark)


def _said(mark: Any) -> str:
    """The same whether a filesystem lists a folder or is asked for one of its files.

    A time is a number in one answer and a `datetime` in another, an etag has quotes or none.
    """
    if isinstance(mark, datetime):
        mark = mark.timestamp()
    return f"{mark:.6f}" if isinstance(mark, float) else str(mark).strip('"')


def check_unchanged(fs: Any, versions: Mapping[str, Version]) -> None:
    """Raise InputError, which names the file, unless all files are as they were.

    Only whether versions are equal counts, never which of two times is the later one. A question
    that storage does not answer is asked again, as a read is.
    """

    def list_again(folder: str) -> None:
        with _asked(folder), contextlib.suppress(FileNotFoundError):  # each file says so itself
            fs.ls(folder)  # one question for all: the filesystem remembers the answer

    def check(path: str) -> None:
        try:
            with _asked(path):
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
def _asked(path: str) -> Iterator[None]:
    """Turn what a filesystem raises in the block, but that a file is not there, into a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # clients of clouds raise dozens of kinds
        sentence = (
            f"whether {path} has changed since this run began to read cannot be said "
            f"({first_line(error)}): run it again"
        )
        raise unreadable(sentence, error) from None
