"""Names of shards: the file name without folder and ending."""

from __future__ import annotations

import os
from collections.abc import Iterable

from datacomp_flyt.errors import InputError


def shard_name(path: str) -> str:
    """Return the name of a shard: `s3://pool/shards/00000000.tar` -> `00000000`."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def shards_by_name(paths: Iterable[str], flag: str) -> dict[str, str]:
    """Return the paths of shards by name.

    Args:
        paths: the paths.
        flag: the flag that named the paths, for messages.

    Raises:
        InputError: two shards have the same name, so their results would too; or a name is that of
            a hidden file.
    """
    named: dict[str, str] = {}
    for path in paths:
        if shard_name(path).startswith((".", "_")):
            raise InputError(
                f"{flag} has a shard called {shard_name(path)!r}: its results would be passed "
                "over as hidden files, so rename it"
            )
        other = named.setdefault(shard_name(path), path)
        if other != path:
            raise InputError(
                f"{flag} has two shards called {shard_name(path)!r}, {other} and {path}: what is "
                "made of them would have one name, so take them in two runs into two folders"
            )
    return named


def absolute_path(path: str) -> str:
    """Return the absolute path of a local file; an address is returned unchanged."""
    return path if "://" in path else os.path.abspath(path)
