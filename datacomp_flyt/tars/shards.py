"""Lists tar shards: those of a folder, of a pattern, or addresses for webdataset."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from fsspec.implementations.local import LocalFileSystem

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import check_unchanged, list_folder, version_of
from datacomp_flyt.files.listing import HIDDEN, NOT_REGULAR, PassedOver, local_path, say_passed_over
from datacomp_flyt.installation import needs_extra

_COMMAND = "pipe:"
_MAGIC = frozenset("*?[")


class Stream(str):
    """An address or a command that a user typed, which webdataset opens.

    A plain string is always the path of a local file, so that no file name can run a command.
    """


def list_shards(location: str, flag: str, commands: bool = False) -> list[str]:
    """List tar shards in an order that does not depend on the machine.

    Args:
        location: a folder with .tar files; one file; a pattern with braces, as in
            `data/{00000000..00012895}.tar`, or with *, ? and [...]; or an address with `://`, also
            with braces. A name that exists is taken literally, even if it looks like a pattern.
        flag: the flag that named the shards, for messages.
        commands: also accept `pipe:` followed by a command whose output is a tar.

    Returns:
        the paths of local files; addresses and commands are `Stream`s.

    Raises:
        InputError: there is no tar, or the braces of a pattern do not match. If some files of a
            pattern exist, its missing files are unreadable shards later.
    """
    local = local_path(location)
    if local is None:
        return _streams(location, flag, commands)
    if os.path.isdir(local):
        return tars_in(local, flag, needed=True)
    if os.path.lexists(local):
        _check_file(local, flag)
        return [local]
    if location.startswith(_COMMAND) and not _existing_part(location)[0]:
        return _streams(location, flag, commands)
    return _files_of_pattern(local, flag)


def is_stream(shard: str) -> bool:
    """Return whether webdataset fetches a shard of `list_shards`: an address, or a command."""
    return isinstance(shard, Stream)


def tars_in(folder: str, flag: str, needed: bool = False) -> list[str]:
    """Return the paths of the .tar files of a local folder, sorted by name.

    Args:
        folder: the folder.
        flag: the flag that named it, for messages.
        needed: refuse a folder without .tar files.

    Raises:
        InputError: the folder cannot be listed, or has no .tar file and one is needed.
    """
    listed = list_folder(folder, flag, (".tar",), needed=(".tar",) if needed else ())
    return [os.path.join(folder, listed.name(path)) for path in listed.versions]


def _streams(location: str, flag: str, commands: bool) -> list[str]:
    if location.startswith(_COMMAND) and not commands:
        raise InputError(
            f"{flag} {location} is no file, and only --train_data of `datacomp-flyt train` runs a "
            "command: give files"
        )
    # webdataset puts an address, in quotes, into a shell command
    if "'" in location and not location.startswith(_COMMAND):
        raise InputError(f"{flag} {location} has a quote in it: write %27 in an address")
    return [Stream(name) for name in _alternatives(location, location, flag)]


def _alternatives(pattern: str, location: str, flag: str) -> list[str]:
    with needs_extra("train"):  # only patterns need it, so a small installation can list folders
        from braceexpand import braceexpand
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:
        raise InputError(
            f"{flag} {location} has a brace without its partner: a range of shards is written "
            "{00000000..00012895}.tar"
        ) from None


def _files_of_pattern(location: str, flag: str) -> list[str]:
    shards: list[str] = []
    passed_over = PassedOver()
    base, rest = _existing_part(location)
    try:
        for alternative in _alternatives(rest, location, flag):
            shards += _matches(base, alternative.split("/"), passed_over)
    except OSError as error:
        raise InputError(
            f"{flag} {location} cannot be listed ({error.filename}: {error.strerror})"
        ) from None
    kept = [shard for shard in shards if _keeps(shard, flag, passed_over)]
    if not any(os.path.exists(shard) for shard in kept):
        other = f" (passed over {passed_over})" if passed_over else ""
        raise InputError(
            f"{flag} {location} names no file that is there{other}: give a folder with .tar files, "
            "or a pattern such as {00000000..00012895}.tar"
        )
    say_passed_over(f"{flag} {location}", passed_over)
    return kept


def _existing_part(pattern: str) -> tuple[str, str]:
    """Split a pattern into its leading folders that exist literally, and the rest.

    The names of these folders may contain braces and brackets.
    """
    names = pattern.split("/")
    depth = len(names) - 1
    while depth and not os.path.isdir("/".join(names[:depth]) or "/"):
        depth -= 1
    base = "/".join(names[:depth])
    return base + "/" if depth else "", "/".join(names[depth:])


def _matches(base: str, names: list[str], passed_over: PassedOver) -> list[str]:
    """Return the sorted paths below a folder that match; without a wildcard, the path itself."""
    if not names:
        return [base.removesuffix("/")]
    name, *rest = names
    if not name:
        return _matches(base, rest, passed_over)
    if not _MAGIC.intersection(name) or os.path.lexists(base + name):
        return _matches(f"{base}{name}/", rest, passed_over)
    matches: list[str] = []
    for entry in sorted(os.listdir(base or ".")) if os.path.isdir(base or ".") else []:
        if not fnmatchcase(entry, name):
            continue
        if entry.startswith((".", "_")) and not name.startswith(entry[0]):
            passed_over.add(HIDDEN, entry)
            continue
        below = _matches(f"{base}{entry}/", rest, passed_over)
        matches += [path for path in below if os.path.lexists(path)]
    return matches


def _keeps(path: str, flag: str, passed_over: PassedOver) -> bool:
    """Return whether a path of a pattern is a file or missing; count pipes and devices."""
    if os.path.isdir(path):
        raise InputError(f"{flag} names {path}, which is a folder: give folders one at a time")
    if os.path.exists(path) and not os.path.isfile(path):
        passed_over.add(NOT_REGULAR, path)
        return False
    return True


def _check_file(path: str, flag: str) -> None:
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be reached ({error.strerror})") from None
    if not regular:
        raise InputError(f"{flag} {path} is not a regular file but a pipe or a device: give files")


def watch_tars(shards: Mapping[str, str]) -> Callable[[str], None]:
    """Note the versions of the tars that are local files.

    Args:
        shards: the tars by name.

    Returns:
        a function that takes a name and raises InputError if that tar has changed since.
    """
    fs = LocalFileSystem()
    versions = {
        name: {tar: version_of(fs, tar)}
        for name, tar in shards.items()
        if not is_stream(tar) and os.path.isfile(tar)
    }
    return lambda name: check_unchanged(fs, versions.get(name, {}))
