"""Opens the output of a run of DataComp's resharder.

A run writes tars that are numbered from 0, whose samples have the keys UID-0, UID-1, ..., one for
each draw of the uid; `sample_ids.npy`, a copy of the subset; and, at its end, `meta.json`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.files.open_file import open_local

_TAR_NAME = re.compile(r"[^{}]*\{(:0?\d{0,2}d?)?\}[^{}]*")  # a format string for a tar's number


@dataclass(frozen=True)
class ResharderRun:
    """The output of one run of the resharder.

    Attributes:
        folder: its `--output-dir`.
        tars: the tars in their order.
        meta: the content of `meta.json`.
    """

    folder: Path
    tars: tuple[Path, ...]
    meta: dict[str, Any]

    @property
    def pool_shards(self) -> str:
        """The shards of the pool that the run processed, according to its flags."""
        first, count = int(self.meta["first_shard"]), str(self.meta["num_shards"])
        last = f"{first + int(count) - 1}" if count.isdigit() else "the last that it found"
        return f"shards {first} to {last} of {self.meta['input_dir']}"


def open_run(folder: Path, subset: Path) -> ResharderRun:
    """Open the output of one run of the resharder.

    Raises:
        InputError: the output is incomplete, or belongs to another subset.
    """
    if not folder.is_dir():
        raise InputError(f"part {folder} is not a folder: give --output-dir of a resharder run")
    listing = list_folder(str(folder), "part", (".tar",))
    present = {folder / listing.name(path) for path in listing.versions}
    try:
        with open_local(str(folder / "meta.json")) as file:
            meta = json.loads(file.read())
        count, name_format = int(meta["output_shard_count"]), str(meta["output_shard_format"])
        if not _TAR_NAME.fullmatch(name_format):
            raise ValueError(f"output_shard_format {name_format!r}")
        # a damaged count may be huge; one name more than there are files shows that files miss
        expected = tuple(
            folder / name_format.format(index) for index in range(min(count, len(present) + 1))
        )
        int(meta["output_count"]), int(meta["first_shard"]), meta["num_shards"], meta["input_dir"]
    except FileNotFoundError:
        raise InputError(
            f"part {folder} has no meta.json, which the resharder writes at its end: its run did "
            "not end, so run it again"
        ) from None
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{folder / 'meta.json'} is not what the resharder writes ({error}): run it again"
        ) from None
    if odd := sorted({*expected} ^ present):
        problem = "is not there" if odd[0] not in present else "is not listed in its meta.json"
        raise InputError(
            f"{odd[0]} {problem}: run the resharder of this part again, into a new folder"
        )
    ids = folder / "sample_ids.npy"
    if not ids.is_file() or not _same_bytes(ids, subset):
        raise InputError(f"part {folder} is of another subset: its sample_ids.npy is not {subset}")
    return ResharderRun(folder, expected, meta)


def _same_bytes(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        while block := one.read(1 << 22):
            if block != other.read(1 << 22):
                return False
    return True
