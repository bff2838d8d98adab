"""Checks that the parts of a subset that was resharded in several runs add up to the subset.

A run of DataComp's resharder writes tars that are numbered from 0, whose samples have the keys
UID-0, UID-1, ..., one for each draw of the uid; `sample_ids.npy`, a copy of the subset; and, at its
end, `meta.json`.
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
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.files.open_file import open_local
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import decode_uids, format_uid
from datacomp_flyt.tars.uids import uids_of_tar
from datacomp_flyt.threads import check_num_workers

_KEY = re.compile(r"([0-9a-fA-F]{1,32})-(\d{1,18})")
_TAR_NAME = re.compile(r"[^{}]*\{(:0?\d{0,2}d?)?\}[^{}]*")  # a format string for a tar's number
_RETRIES = 1


@dataclass(frozen=True)
class PartsReport:
    """The result of `check_parts`.

    Attributes:
        facts: the draws of each part and of all parts, for a person to read.
        problems: the reasons why the parts do not add up; none if they do.
        missing: the examples of the subset that are in no part. They are a problem unless the
            pool is known to have no image of them.
    """

    facts: list[str]
    problems: list[str]
    missing: MissingExamples

    @property
    def valid(self) -> bool:
        """True if the parts add up to the subset."""
        return not self.problems


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


@dataclass(frozen=True)
class MissingExamples:
    """Examples of a subset that are in no part.

    Attributes:
        uids: `u8,u8` array [n], sorted.
        draws: the draws of all of them together.
    """

    uids: NDArray[np.void]
    draws: int

    def __str__(self) -> str:
        return (
            f"{self.draws:,} draws of {len(self.uids):,} examples are in no part (the first is "
            f"{format_uid(self.uids[0])})"
        )


def check_parts(
    subset: str | Path,
    parts: Sequence[str | Path],
    *,
    shards_dir: str | None = None,
    num_workers: int | None = None,
    engine: Engine | None = None,
) -> PartsReport:
    """Check that every draw of a subset is in exactly one part.

    Memory: 18 bytes a draw and 24 an example while the subset is checked, then 61 an example.

    Args:
        subset: the .npy file.
        parts: the `--output-dir` of each run of the resharder.
        shards_dir: the pool's tars, a folder or a pattern. They tell images that the pool lacks
            from shards that no run has processed; without them each missing draw is a problem.
        num_workers: processes; by default as many as there are cores.
        engine: runs the work in place of such processes; its workers have to see the files.

    Raises:
        InputError: the subset or a part cannot be read, a part is incomplete, or the same part is
            given twice.
    """
    folders = [Path(part) for part in parts]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("one part is named twice: name each once")
    num_workers = check_num_workers(num_workers)
    with engine or ProcessEngine(num_workers, "cpu") as workers:
        uids, repeats = read_subset(subset)
        runs = [open_run(folder, Path(subset)) for folder in folders]
        counts = PartCounts(Path(subset), uids, repeats, runs)
        _read_tars(workers, counts)
        report = counts.report()
        if report.missing.draws:
            _explain_missing(report, shards_dir, workers)
    return report


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


class PartCounts:
    """Counts how often each example of a subset is in the parts, and in which tars.

    Attributes:
        tars: the tars of all parts, one part after the other.
    """

    def __init__(
        self,
        subset: Path,
        uids: NDArray[np.void],
        repeats: NDArray[np.integer],
        parts: Sequence[ResharderRun],
    ) -> None:
        self._subset, self._uids, self._repeats, self._parts = subset, uids, repeats, parts
        self._high, self._low = uids["f0"].copy(), uids["f1"].copy()
        self.tars = [tar for part in parts for tar in part.tars]
        part_of_tar = np.repeat(np.arange(len(parts)), [len(part.tars) for part in parts])
        self._part_of_tar = np.append(part_of_tar, -1).astype(np.int32)  # -1: part of no tar
        self._counts = np.zeros(len(uids), np.int32)
        # the first and the last tar that has draws of each example
        self._first = np.full(len(uids), len(self.tars), np.int32)
        self._last = np.full(len(uids), -1, np.int32)
        self._draws_of_tar = np.zeros(len(self.tars), np.int64)

    def add(self, tar_index: int, uids: NDArray[np.void], draws: NDArray[np.int64]) -> None:
        """Count the samples of a tar.

        Args:
            tar_index: the index of the tar in `tars`.
            uids: the uid of each sample [n].
            draws: the index of each sample among the draws of its uid [n].

        Raises:
            InputError: the subset has no such draw.
        """
        rows = find_uids(self._high, self._low, uids)
        wrong = np.flatnonzero((rows < 0) | (draws >= self._repeats[rows]))
        if len(wrong):
            uid, draw = format_uid(uids[wrong[0]]), int(draws[wrong[0]]) + 1
            raise InputError(
                f"{self.tars[tar_index]} has draw {draw} of {uid}, which {self._subset} does not: "
                "it is of another subset, so run the resharder of this part again"
            )
        np.add.at(self._counts, rows, 1)
        self._first[rows] = np.minimum(self._first[rows], tar_index)
        self._last[rows] = np.maximum(self._last[rows], tar_index)
        self._draws_of_tar[tar_index] = len(uids)

    def report(self) -> PartsReport:
        """Report the draws of each part, and what does not add up.

        Missing examples are in the report, but not yet among its problems.
        """
        missing = np.flatnonzero(self._counts == 0)
        report = PartsReport(
            [], [], MissingExamples(self._uids[missing], int(self._repeats[missing].sum()))
        )
        self._report_parts(report)
        self._report_examples(report)
        total = int(self._repeats.sum(dtype=np.int64))
        present = int(self._counts.sum(dtype=np.int64))
        report.facts.append(f"{present:,} of {total:,} draws are in the parts")
        return report

    def _report_parts(self, report: PartsReport) -> None:
        """Compare the draws of each part with its meta.json."""
        for part_index, part in enumerate(self._parts):
            draws = int(self._draws_of_tar[self._part_of_tar[:-1] == part_index].sum())
            report.facts.append(
                f"{part.folder}: {draws:,} draws in {len(part.tars):,} tars, of {part.pool_shards}"
            )
            if draws != int(part.meta["output_count"]):
                report.problems.append(
                    f"{part.folder} has {draws:,} draws and its meta.json says "
                    f"{int(part.meta['output_count']):,}: run the resharder of this part again"
                )

    def _report_examples(self, report: PartsReport) -> None:
        """Report examples in more than one part, and those with too many or too few draws."""
        in_many_parts = self._part_of_tar[self._first] != self._part_of_tar[self._last]
        shared = np.flatnonzero(in_many_parts)
        if len(shared):
            one, other = (
                f"{self.tars[tar]} (made of {self._parts[self._part_of_tar[tar]].pool_shards})"
                for tar in (self._first[shared[0]], self._last[shared[0]])
            )
            report.problems.append(
                f"{len(shared):,} examples are in more than one part, the first is "
                f"{format_uid(self._uids[shared[0]])} in {one} and {other}: a shard was processed "
                "twice, or the pool has a uid twice"
            )
        in_one_part = (self._counts > 0) & ~in_many_parts
        for compare, text in (
            (np.greater, "too often, so the pool has them twice"),
            (np.less, "too seldom, so run the resharder of that part again"),
        ):
            if len(wrong := np.flatnonzero(in_one_part & compare(self._counts, self._repeats))):
                row = wrong[0]
                report.problems.append(
                    f"{len(wrong):,} examples are there {text}: the first is "
                    f"{format_uid(self._uids[row])} in {self.tars[self._first[row]]} with "
                    f"{int(self._counts[row])} draws of {int(self._repeats[row])}"
                )


def _explain_missing(report: PartsReport, shards_dir: str | None, engine: Engine) -> None:
    """Add the missing examples to the report: as a fact if the pool has no image of them."""
    missing = report.missing
    if shards_dir is None:
        report.problems.append(
            f"{missing}: give --shards_dir to know whether the pool has images of them"
        )
        return
    with needs_extra("train"):
        from datacomp_flyt.tars.shards import list_shards
    if reason := find_in_pool(missing, list_shards(shards_dir, "--shards_dir"), engine):
        report.problems.append(f"{missing}, and {reason}")
    else:
        report.facts.append(f"{missing}: the pool has no image of any")


def find_in_pool(missing: MissingExamples, tars: Sequence[str], engine: Engine) -> str | None:
    """Search the pool's tars for missing examples.

    Args:
        missing: the examples.
        tars: local files.
        engine: runs the work; its workers have to see the tars.

    Returns:
        a text on the tars that have some of the examples and on those that cannot be read; None if
        all tars can be read and have none of them.
    """
    high, low = missing.uids["f0"].copy(), missing.uids["f1"].copy()
    matches: dict[int, tuple[int, str]] = {}  # by tar: the number of examples, and the first uid

    def search(name: str, uids: NDArray[np.void]) -> int:
        rows = find_uids(high, low, uids)
        if len(rows := rows[rows >= 0]):
            matches[int(name)] = (len(rows), format_uid(missing.uids[rows.min()]))
        return len(uids)

    items = {f"{index:08d}": tar for index, tar in enumerate(tars)}
    make = _TarReader(_uids_of_pool_tar)
    errors = run_shards(engine, make, items, search, _RETRIES, "reading the pool")
    parts = []
    if matches:
        first = min(matches)
        count, uid = matches[first]
        parts.append(
            f"{len(matches):,} shards of the pool have examples that are in no part: the first "
            f"is {tars[first]} with {count:,}, such as {uid}. No part has processed it: was "
            "it in no part's range, or has it no _stats.json and no place in sizes.json?"
        )
    if errors:
        parts.append(
            f"{len(errors):,} shards of the pool may have them, for they cannot be read: "
            f"{next(iter(errors.values()))}"
        )
    return "; ".join(parts) or None


@dataclass(frozen=True)
class _TarReader:
    """Makes the function that a worker applies to each item, (name, path of a tar)."""

    function: Callable[[str], Any]

    def __call__(self, device: str) -> Callable[[tuple[str, str]], Any]:
        return lambda item: self.function(item[1])


def _read_tars(engine: Engine, counts: PartCounts) -> None:
    """Read the tars of all parts into `counts`."""

    def add(name: str, samples: tuple[NDArray[np.void], NDArray[np.int64]]) -> int:
        counts.add(int(name), *samples)
        return len(samples[0])

    items = {f"{index:08d}": str(tar) for index, tar in enumerate(counts.tars)}
    make = _TarReader(_draws_of_tar)
    errors = run_shards(engine, make, items, add, _RETRIES, "reading parts")
    for name, error in errors.items():
        if isinstance(error, InputError):
            raise error
        raise InputError(f"{items[name]} cannot be read ({error})")


def _draws_of_tar(path: str) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Read the uid of each sample of a tar [n], and its index among the draws of that uid [n].

    Only headers are read, since each sample has a .json member whose name says both.
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
                raise EOFError("it is cut short")
    except Exception as error:  # tarfile and filesystems raise a dozen kinds
        raise InputError(
            f"{path} cannot be read ({error}): run the resharder of this part again"
        ) from None
    uids, draws = [], []
    for key in keys:
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{path} has a sample {key!r}: the resharder's are called UID-0")
        uids.append(match[1].lower().zfill(32))
        draws.append(int(match[2]))
    return decode_uids(pa.array(uids, pa.string())), np.array(draws, np.int64)


def _uids_of_pool_tar(path: str) -> NDArray[np.void]:
    tar_uids = uids_of_tar(path)
    if tar_uids.problem is not None:
        raise InputError(f"{path} cannot be read ({tar_uids.problem}): download it again")
    if tar_uids.invalid is not None:
        raise InputError(f"{path} has uid {tar_uids.invalid!r}: a uid is 32 characters")
    return tar_uids.uids


def _same_bytes(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        while block := one.read(1 << 22):
            if block != other.read(1 << 22):
                return False
    return True
