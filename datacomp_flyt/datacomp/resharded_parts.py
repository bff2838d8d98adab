"""Checks that the parts of a subset that was resharded in several runs add up to the subset.

See `resharder_run` for what a run writes.
"""

from __future__ import annotations

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

from datacomp_flyt.arguments import check_list
from datacomp_flyt.datacomp.part_counts import MissingExamples, PartCounts, PartsReport
from datacomp_flyt.datacomp.resharder_run import open_run
from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import decode_uids, format_uid
from datacomp_flyt.tars.uids import uids_of_tar
from datacomp_flyt.threads import check_num_workers

_KEY = re.compile(r"([0-9a-fA-F]{1,32})-(\d{1,18})")
_RETRIES = 1


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
    folders = [Path(part) for part in check_list(parts, "the list of parts")]
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
