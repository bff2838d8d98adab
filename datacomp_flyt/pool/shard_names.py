"""What a shard is called: its file's name without folder and ending."""

from __future__ import annotations

import os
from collections.abc import Iterable

from datacomp_flyt.errors import InputError


def shard_name(path: str) -> str:
    """`s3://pool/shards/00000000.tar` -> `00000000`."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def by_name(paths: Iterable[str], flag: str) -> dict[str, str]:
    """Paths by the names of their shards.

    Args:
        flag: what named the paths, for the message.

    Raises:
        InputError: two shards have one name, and so would what is made of them; or a name is that
            of a hidden file.
    """
    named: dict[str, str] = {}
    for path in paths:
        if shard_name(path).startswith((".", "_")):
            raise InputError(
                f"{flag} has a shard called {shard_name(path)!r}: what is made of it would be "
                "passed over as hidden, so rename it"
            )
        other = named.setdefault(shard_name(path), path)
        if other != path:
            raise InputError(
                f"{flag} has two shards called {shard_name(path)!r}, {other} and {path}: what is "
                "made of them would have one name, so take them in two runs into two folders"
            )
    return named


def resolved(place: str) -> str:
    """A local path in full, so that it means the same from any folder; addresses as they are."""
    return place if "://" in place else os.path.abspath(place)
