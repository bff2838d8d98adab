"""Where the tar shards of a data set are: a folder, a pattern, or addresses for webdataset."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.folders import check_unchanged, version_of


def list_shards(where: str, flag: str) -> list[str]:
    """Tar shards in an order that does not depend on the machine.

    Args:
        where: a folder with .tar files; one .tar file; a pattern of such with braces, as in
            `data/{00000000..00012895}.tar`, or with * and ?; or what webdataset opens itself, with
            braces too: an address with `://`, or `pipe:` and a command.
        flag: the flag that said so, for messages.

    Raises:
        InputError: no tar there, or a pattern with a brace too many. Files of a pattern may be
            missing as long as one is there: they count as unreadable shards later.
    """
    if os.path.isdir(where):
        shards = tars_in(where)
        if not shards:
            raise InputError(f"{flag} {where} holds no .tar file: give the folder that does")
        return shards
    if os.path.isfile(where):
        return [where]
    try:
        names = list(braceexpand(where, escape=False))
    except ValueError:
        raise InputError(
            f"{flag} {where} has a brace without its partner: a range of shards is written "
            "{00000000..00012895}.tar"
        ) from None
    if is_stream(where):
        return names
    shards = []
    for name in names:
        shards += sorted(glob.glob(name)) if glob.has_magic(name) else [name]
    if not any(os.path.exists(shard) for shard in shards):
        raise InputError(
            f"{flag} {where} names no file that is there: give a folder with .tar files, or a "
            "pattern such as {00000000..00012895}.tar"
        )
    return shards


def is_stream(where: str) -> bool:
    """Whether webdataset fetches it: an address, or a command."""
    return where.startswith("pipe:") or "://" in where


def tars_in(folder: str) -> list[str]:
    """Paths of the .tar files of a local folder, sorted by name."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".tar"))
    return [os.path.join(folder, name) for name in names]


def watch_tars(shards: Mapping[str, str]) -> Callable[[str], None]:
    """Note the versions of tars that are local files.

    Args:
        shards: by name.

    Returns:
        what raises InputError, given a name, if that tar is another one by now.
    """
    fs = LocalFileSystem()
    versions = {
        name: {tar: version_of(fs, tar)} for name, tar in shards.items() if os.path.isfile(tar)
    }
    return lambda name: check_unchanged(fs, versions.get(name, {}))
