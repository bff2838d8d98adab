"""The settings of a folder of results: written by the first run, compared by later runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.open_file import readable
from datacomp_flyt.files.output_files import atomic_write

SETTINGS_FILE = "_settings.json"
"""Readers of a folder of parquet files (pandas, pyarrow, Spark) ignore names with a leading _."""

_OLD_NAME = "settings.json"  # the name in older releases


def check_settings(
    folder: Path, settings: dict[str, Any], way_out: str, results: Iterable[str] | None = None
) -> None:
    """Write the settings to a new folder, or compare them with those of an existing one.

    Other settings are replaced if the folder has no results: the run that wrote them finished
    nothing, as with a mistyped flag.

    Args:
        folder: the folder; it is created if it is missing.
        settings: the settings, which JSON can hold.
        way_out: the advice if the folder has other files or settings.
        results: patterns of the files that depend on the settings; None if other settings are
            always refused.

    Raises:
        InputError: the folder was made with other settings, or has parquet files and no settings.
    """
    wanted = json.loads(json.dumps(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): {way_out}") from None
    path = folder / SETTINGS_FILE
    if not path.exists() and (folder / _OLD_NAME).exists():
        path = folder / _OLD_NAME
    if not path.exists():
        if any(folder.glob("*.parquet")):
            raise InputError(
                f"{folder} holds .parquet files that this command did not make: {way_out}"
            )
        _write(path, wanted)
        return
    with readable(str(path), "JSON", f"remove {folder} to begin anew"):
        existing = json.loads(path.read_bytes())
        keys = {*existing, *wanted}
        other = sorted(key for key in keys if existing.get(key) != wanted.get(key))
    # a file without a common key belongs to another program
    ours = path.name == SETTINGS_FILE and existing.keys() & wanted.keys()
    if other and ours and results is not None and not _any_file(folder, results):
        _write(path, wanted)
    elif other:
        raise InputError(
            f"{folder} was made with {other[0]} {existing.get(other[0])!r}, now it is "
            f"{wanted.get(other[0])!r}: give the same settings, {way_out}, or remove that folder"
        )
    if path.name == _OLD_NAME:
        with contextlib.suppress(OSError):  # the folder may be read-only
            os.rename(path, folder / SETTINGS_FILE)


def _any_file(folder: Path, patterns: Iterable[str]) -> bool:
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


def _write(path: Path, settings: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n")
