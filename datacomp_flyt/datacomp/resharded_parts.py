"""Parts of a resharded subset, one of each run of DataComp's resharder: do they add up?

A run leaves tars numbered from 0, whose samples are called UID-0, UID-1, ... up to the uid's draws,
`sample_ids.npy`, which is the subset, and in the end `meta.json`.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.files.open_file import open_local
from datacomp_flyt.pool.subset import SubsetReport, read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import decode_uids, format_uid
from datacomp_flyt.tars.uids import uids_of_tar

_KEY = re.compile(r"([0-9a-fA-F]{1,32})-(\d{1,18})")
_FORMAT = re.compile(r"[^{}]*\{(:0?\d{0,2}d?)?\}[^{}]*")  # of a tar's name, from its number
_RETRIES = 1


@dataclass(frozen=True)
class Part:
    """What one run of the resharder left.

    Attributes:
        folder: of it.
        tars: in order.
        meta: of `meta.json`.
    """

    folder: Path
    tars: tuple[Path, ...]
    meta: dict[str, Any]

    @property
    def pool_shards(self) -> str:
        """Which shards it went through, as far as its flags say."""
        first, number = int(self.meta["first_shard"]), str(self.meta["num_shards"])
        last = f"{first + int(number) - 1}" if number.isdigit() else "the last that it found"
        return f"shards {first} to {last} of {self.meta['input_dir']}"


def open_part(folder: Path, subset: Path) -> Part:
    """The part in a folder.

    Raises:
        InputError: it is not whole, or of another subset.
    """
    if not folder.is_dir():
        raise InputError(f"part {folder} is no folder: give --output-dir of a resharder run")
    listed = list_folder(str(folder), "part", (".tar",))
    found = {folder / listed.name(path) for path in listed.versions}
    try:
        with open_local(str(folder / "meta.json")) as file:
            meta = json.loads(file.read())
        number, form = int(meta["output_shard_count"]), str(meta["output_shard_format"])
        if not _FORMAT.fullmatch(form):
            raise ValueError(f"output_shard_format {form!r}")
        # of many too many one is enough to be missed
        wanted = tuple(folder / form.format(n) for n in range(min(number, len(found) + 1)))
        int(meta["output_count"]), int(meta["first_shard"]), meta["num_shards"], meta["input_dir"]
    except FileNotFoundError:
        raise InputError(
            f"part {folder} has no meta.json, which the resharder writes in the end: its run did "
            "not end, so run it again"
        ) from None
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{folder / 'meta.json'} is not what the resharder writes ({error}): run it again"
        ) from None
    if odd := sorted({*wanted} ^ found):
        what = "is not there" if odd[0] not in found else "is of no run that its meta.json tells of"
        raise InputError(
            f"{odd[0]} {what}: run the resharder of this part again, into a new folder"
        )
    ids = folder / "sample_ids.npy"
    if not ids.is_file() or not _same_bytes(ids, subset):
        raise InputError(f"part {folder} is of another subset: its sample_ids.npy is not {subset}")
    return Part(folder, wanted, meta)


def check_parts(subset: Path, folders: Sequence[Path], engine: Engine) -> tuple[SubsetReport, Lost]:
    """Is every draw of a subset in exactly one part?

    Memory: 18 bytes a draw and 24 an example while the subset is checked, then 61 an example.

    Args:
        subset: the .npy file.
        folders: of the parts.
        engine: whose workers see the folders.

    Returns:
        facts and problems; and the examples that are in no part, which are no problem if the pool
        has no image of them.

    Raises:
        InputError: the subset or a part cannot be read, or a part is not whole.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("one part is named twice: name each once")
    uids, repeats = read_subset(subset)
    parts = [open_part(folder, subset) for folder in folders]
    tally = _Tally(subset, uids, repeats, parts)
    items = {f"{place:08d}": str(tar) for place, tar in enumerate(tally.tars)}
    _run(engine, _Read(_draws_of_tar), items, tally.add, "reading parts")
    gone = np.flatnonzero(tally.counts == 0)
    return tally.report(), Lost(uids[gone], int(repeats[gone].sum()))


class _Tally:
    """How often each example of a subset is in the parts, and where.

    Attributes:
        tars: of all parts, one part after the other.
        counts: draws of each example [n].
    """

    def __init__(
        self, subset: Path, uids: NDArray[np.void], repeats: NDArray[np.integer], parts: list[Part]
    ) -> None:
        self._subset, self._uids, self._repeats, self._parts = subset, uids, repeats, parts
        self._high, self._low = uids["f0"].copy(), uids["f1"].copy()
        self.tars = [tar for part in parts for tar in part.tars]
        numbers = np.repeat(np.arange(len(parts)), [len(part.tars) for part in parts])
        self._part_of = np.append(numbers, -1).astype(np.int32)  # of each tar, and of none
        self.counts = np.zeros(len(uids), np.int32)
        self._first = np.full(len(uids), len(self.tars), np.int32)  # tar of each example
        self._last = np.full(len(uids), -1, np.int32)
        self._draws = np.zeros(len(self.tars), np.int64)

    def add(self, name: str, found: tuple[NDArray[np.void], NDArray[np.int64]]) -> int:
        """Count what is in a tar, given its place among the tars as a name.

        Raises:
            InputError: the subset has no such draw.
        """
        drawn, numbers = found
        place = int(name)
        where = find_uids(self._high, self._low, drawn)
        wrong = np.flatnonzero((where < 0) | (numbers >= self._repeats[where]))
        if len(wrong):
            uid, number = format_uid(drawn[wrong[0]]), int(numbers[wrong[0]]) + 1
            raise InputError(
                f"{self.tars[place]} has draw {number} of {uid}, which {self._subset} does not: it "
                "is of another subset, so run the resharder of this part again"
            )
        np.add.at(self.counts, where, 1)
        self._first[where] = np.minimum(self._first[where], place)
        self._last[where] = np.maximum(self._last[where], place)
        self._draws[place] = len(drawn)
        return len(drawn)

    def report(self) -> SubsetReport:
        """What each part has, and what does not add up; lost examples are not told of."""
        report = SubsetReport()
        for number, part in enumerate(self._parts):
            draws = int(self._draws[self._part_of[:-1] == number].sum())
            report.facts.append(
                f"{part.folder}: {draws:,} draws in {len(part.tars):,} tars, of {part.pool_shards}"
            )
            if draws != int(part.meta["output_count"]):
                report.problems.append(
                    f"{part.folder} has {draws:,} draws and its meta.json says "
                    f"{int(part.meta['output_count']):,}: run the resharder of this part again"
                )
        apart = self._part_of[self._first] != self._part_of[self._last]
        shared, alone = np.flatnonzero(apart), (self.counts > 0) & ~apart
        if len(shared):
            places = [(self.tars[tar], self._parts[self._part_of[tar]].pool_shards)
                      for tar in (self._first[shared[0]], self._last[shared[0]])]  # fmt: skip
            (one, of_one), (other, of_other) = places
            report.problems.append(
                f"{len(shared):,} examples are in more than one part, the first is "
                f"{format_uid(self._uids[shared[0]])} in {one} (made of {of_one}) and {other} "
                f"(made of {of_other}): a shard was processed twice, or the pool has a uid twice"
            )
        for compare, text in (
            (np.greater, "too often, so the pool has them twice"),
            (np.less, "too seldom, so run the resharder of that part again"),
        ):
            if len(which := np.flatnonzero(alone & compare(self.counts, self._repeats))):
                place = which[0]
                report.problems.append(
                    f"{len(which):,} examples are there {text}: the first is "
                    f"{format_uid(self._uids[place])} in {self.tars[self._first[place]]} with "
                    f"{int(self.counts[place])} draws of {int(self._repeats[place])}"
                )
        all_draws = int(self._repeats.sum(dtype=np.int64))
        found = int(self.counts.sum(dtype=np.int64))
        report.facts.append(f"{found:,} of {all_draws:,} draws are in the parts")
        return report


@dataclass(frozen=True)
class Lost:
    """Examples of a subset that are in no part.

    Attributes:
        uids: `u8,u8` array [n], sorted.
        draws: of them all.
    """

    uids: NDArray[np.void]
    draws: int

    def __str__(self) -> str:
        return (
            f"{self.draws:,} draws of {len(self.uids):,} examples are in no part (the first is "
            f"{format_uid(self.uids[0])})"
        )

    def find_in_pool(self, tars: Sequence[str], engine: Engine) -> str | None:
        """What tells of shards left out: those that have some of them, or that cannot be read.

        Args:
            tars: of the pool, local.
            engine: whose workers see them.

        Returns:
            None if all can, and none has.
        """
        high, low = self.uids["f0"].copy(), self.uids["f1"].copy()
        having: dict[int, tuple[int, str]] = {}

        def look(name: str, uids: NDArray[np.void]) -> int:
            there = find_uids(high, low, uids)
            if len(some := there[there >= 0]):
                having[int(name)] = (len(some), format_uid(self.uids[some.min()]))
            return len(uids)

        items = {f"{place:08d}": tar for place, tar in enumerate(tars)}
        make = _Read(_uids_of_pool_tar)
        errors = run_shards(engine, make, items, look, _RETRIES, "reading the pool")
        said = []
        if having:
            place = min(having)
            number, uid = having[place]
            said.append(
                f"{len(having):,} shards of the pool have examples that are in no part: the first "
                f"is {tars[place]} with {number:,}, such as {uid}. No part has processed it: was "
                "it in no part's range, or has it no _stats.json and no place in sizes.json?"
            )
        if errors:
            said.append(
                f"{len(errors):,} shards of the pool may have them, for they cannot be read: "
                f"{next(iter(errors.values()))}"
            )
        return "; ".join(said) or None


@dataclass(frozen=True)
class _Read:
    """Makes, in each worker, the function of (name, path of a tar)."""

    function: Callable[[str], Any]

    def __call__(self, device: str) -> Callable[[tuple[str, str]], Any]:
        return lambda item: self.function(item[1])


def _run(
    engine: Engine, make: _Read, items: dict[str, str], keep: Callable[[str, Any], int], label: str
) -> None:
    for name, error in run_shards(engine, make, items, keep, _RETRIES, label).items():
        if isinstance(error, InputError):
            raise error
        raise InputError(f"{items[name]} cannot be read ({error})")


def _draws_of_tar(path: str) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """uids [n] of the samples of a tar and the number [n] that each has among its uid's draws.

    Of headers only, what is between them is passed over: each sample has a json.
    """
    keys = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    keys.append(member.name.removesuffix(".json"))
                archive.members = []  # type: ignore[attr-defined]
        with open(path, "rb") as file:
            file.seek(-512, os.SEEK_END)
            if file.read().strip(b"\0"):
                raise EOFError("it ends before the mark of its end")
    except Exception as error:  # tarfile and filesystems raise a dozen kinds
        raise InputError(
            f"{path} cannot be read ({error}): run the resharder of this part again"
        ) from None
    uids, numbers = [], []
    for key in keys:
        found = _KEY.fullmatch(key)
        if found is None:
            raise InputError(f"{path} has a sample {key!r}: the resharder's are called UID-0")
        uids.append(found.group(1).lower().zfill(32))
        numbers.append(int(found.group(2)))
    return decode_uids(pa.array(uids, pa.string())), np.array(numbers, np.int64)


def _uids_of_pool_tar(path: str) -> NDArray[np.void]:
    found = uids_of_tar(path)
    if found.problem is not None:
        raise InputError(f"{path} cannot be read ({found.problem}): download it again")
    if found.invalid is not None:
        raise InputError(f"{path} has uid {found.invalid!r}: a uid is 32 characters")
    return found.uids


def _same_bytes(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        while block := one.read(1 << 22):
            if block != other.read(1 << 22):
                return False
    return True
