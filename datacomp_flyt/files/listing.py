"""Lists the data files of a folder: tables, npz and tars, local or in a cloud.

Other files (hidden ones, names with a leading `_`, pipes and devices) are passed over and counted,
so that a message can report them.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from datacomp_flyt.errors import InputError
from datacomp_flyt.streams import say

HIDDEN = "hidden or named _..."
NOT_REGULAR = "not a regular file"
OTHER_ENDING = "with more after the ending"
DANGLING = "a link that leads nowhere"
LISTED_BEFORE = "a link to a folder that is listed anyway"
SUB_FOLDER = "a sub-folder, which is not looked into"

_ADDRESS = re.compile(r"(?:\w+::)*[A-Za-z][\w+.-]*://")
_LOCAL = ("file://", "local://")
# settings, journals, locks and temporary files of this program, which need no message
_OURS = re.compile(r"[._]settings\.json|_passes|\..*lock|\..*\.datacomp_flyt\.tmp", re.DOTALL)


def local_path(location: str) -> str | None:
    """Return the local path that a flag names; None for a cloud address.

    Only a name that begins with `scheme://` is an address. Any other name is a file's, even if it
    contains `::`, `file:` or `pipe:`.
    """
    for scheme in _LOCAL:
        if location.startswith(scheme):
            return location[len(scheme) :]
    if _ADDRESS.match(location):
        return None
    home = location.startswith("~") and not os.path.lexists(location.split("/")[0])
    return os.path.expanduser(location) if home else location


def resolve_path(location: str) -> tuple[Any, str]:
    """Return the filesystem of a path or address, and the path in it, absolute if it is local."""
    local = local_path(location)
    if local is not None:
        return LocalFileSystem(), os.path.abspath(local) if local else local
    fs, root = fsspec.core.url_to_fs(location)
    return fs, str(root)


def is_folder(fs: Any, path: str) -> bool:
    """Return whether a path is a folder, or a link to one."""
    return os.path.isdir(path) if isinstance(fs, LocalFileSystem) else bool(fs.isdir(path))


def has_ending(path: str, endings: str | tuple[str, ...]) -> bool:
    """Return whether a name has one of the endings, in any case."""
    return path.lower().endswith(endings)


class PassedOver:
    """Counts of the files that a listing passes over, by reason, with an example of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        """Count a file."""
        self._counts[reason] += 1
        self._examples.setdefault(reason, name)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        text = ", ".join(
            f"{reason} ({count:,}, such as {self._examples[reason]})"
            for reason, count in self._counts.items()
        )
        return f"{sum(self._counts.values()):,}: {text}"

    def keeps(self, name: str, endings: tuple[str, ...]) -> bool:
        """Return whether a file of this name is data; a similar name is counted as passed over."""
        if name.startswith((".", "_")):
            if not _OURS.fullmatch(name):
                self.add(HIDDEN, name)
            return False
        if has_ending(name, endings):
            return True
        if any(re.search(re.escape(ending) + r"[^a-z0-9]", name.lower()) for ending in endings):
            self.add(OTHER_ENDING, name)
        return False


def list_local(
    root: str, endings: tuple[str, ...], recursive: bool, passed_over: PassedOver
) -> list[str]:
    """Return the sorted paths of a local folder's data files. Links are followed, folders once.

    Raises:
        OSError: a folder cannot be listed.
        InputError: a link that is named like data leads nowhere (npz excepted, since its reader
            reports it); or a folder is named like a file and sub-folders are not read.
    """
    paths: list[str] = []
    visited: set[tuple[int, int]] = set()
    folders, links = deque([root]), deque[str]()
    while folders or links:  # real folders first, so that links do not rename them
        folder = (folders or links).popleft()
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in visited:
            passed_over.add(LISTED_BEFORE, folder)
            continue
        visited.add((state.st_dev, state.st_ino))
        for entry in _entries(folder):
            mode = _mode(entry, endings)
            if mode is None:
                passed_over.add(DANGLING, entry.name)
            elif not stat.S_ISDIR(mode):
                if passed_over.keeps(entry.name, endings):
                    if stat.S_ISREG(mode):
                        paths.append(entry.path)
                    else:
                        passed_over.add(NOT_REGULAR, entry.name)
            elif entry.name.startswith((".", "_")):
                passed_over.keeps(entry.name, endings)
            elif recursive:
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                _pass_folder(entry.path, entry.name, endings, passed_over)
    return sorted(paths)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _mode(entry: os.DirEntry[str], endings: tuple[str, ...]) -> int | None:
    """Return the type of a file, or of a link's target; None if the target does not exist."""
    try:
        if entry.is_file(follow_symlinks=False):  # known without a stat call
            return stat.S_IFREG
        return entry.stat().st_mode
    except OSError as error:
        if not entry.is_symlink():
            raise
        if entry.name.startswith((".", "_")):
            return stat.S_IFLNK
        if not has_ending(entry.name, endings) or has_ending(entry.name, ".npz"):
            return None
        raise InputError(
            f"{entry.path} is a link to {os.readlink(entry.path)}, which cannot be reached "
            f"({error.strerror}): mend the link or remove it"
        ) from None


def _pass_folder(path: str, name: str, endings: tuple[str, ...], passed_over: PassedOver) -> None:
    if has_ending(name, endings):
        raise InputError(
            f"{path} is a folder, named like a file, such as Spark writes: it is not read in the "
            "middle of other files, so give that folder itself, or move it"
        )
    passed_over.add(SUB_FOLDER, name)


def list_cloud(
    fs: Any, root: str, endings: tuple[str, ...], recursive: bool, passed_over: PassedOver
) -> dict[str, Mapping[str, Any]]:
    """Return the filesystem's entries for a folder's data files, sorted by path.

    Raises:
        InputError: a folder is named like a file and sub-folders are not read.
    """
    if recursive:
        infos: Mapping[Any, Any] = fs.find(root, detail=True)
    else:
        infos = {info["name"]: info for info in fs.ls(root, detail=True)}
    kept = {}
    for path, info in sorted((str(path), info) for path, info in infos.items()):
        names = path.rstrip("/")[len(root.rstrip("/")) + 1 :].split("/")
        if not names[-1]:  # the placeholder object of the folder itself
            continue
        hidden = next((name for name in names[:-1] if name.startswith((".", "_"))), None)
        if hidden is not None:
            passed_over.add(HIDDEN, "/".join(names))
        elif info.get("type") != "directory":
            if passed_over.keeps(names[-1], endings):
                kept[path] = info
        elif names[-1].startswith((".", "_")):
            passed_over.add(HIDDEN, names[-1])
        elif not recursive:
            _pass_folder(path, names[-1], endings, passed_over)
    return kept


_PRINTED: set[str] = set()


def say_passed_over(folder: str, passed_over: PassedOver) -> None:
    """Print the files that a listing passed over, once in a process."""
    line = f"{folder}: passed over {passed_over}"
    if passed_over and line not in _PRINTED:
        _PRINTED.add(line)
        say(line)
