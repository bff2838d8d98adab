"""Finds the images in tar shards, from img2dataset's tables or from the tars themselves."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import version_of
from datacomp_flyt.pool.uid_search import UidHalves, sort_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.tars.image_journal import Journal, Tar
from datacomp_flyt.tars.shards import is_stream
from datacomp_flyt.tars.uids import TarUids, read_uids_of_tar, table_beside, uids_of_table
from datacomp_flyt.threads import map_threads

_ROWS = 1 << 22  # uids merged at once
_RETRIES = 1


@dataclass
class Images:
    """The images of tar shards.

    Attributes:
        tars: the shards.
        uids: the sorted uids of each shard.
        unreadable: the problem of each damaged shard, by path; images before the damage are listed.
        repeated: a uid that occurs more than once, if there is one; set by `merged`.
        num_repeated: the number of such uids; set by `merged`.
    """

    tars: list[Tar] = field(default_factory=list)
    uids: list[NDArray[np.void]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    repeated: np.void | None = None
    num_repeated: int = 0

    def merged(self, rows_at_once: int = _ROWS) -> Iterator[NDArray[np.void]]:
        """Yield all uids in order, each once, in blocks of about `rows_at_once`.

        The shards' sorted lists are merged one range of uids at a time. uids are hashes, so equal
        ranges hold about equally many.
        """
        num_ranges = -(-sum(map(len, self.uids)) // rows_at_once)
        starts = (np.arange(1, num_ranges) * (2.0**64 / max(num_ranges, 1))).astype(np.uint64)
        bounds = [
            [0, *np.ascontiguousarray(uids["f0"]).searchsorted(starts), len(uids)]
            for uids in self.uids
        ]
        for begin, end in ((n, n + 1) for n in range(num_ranges)):
            parts = [
                uids[bound[begin] : bound[end]]
                for uids, bound in zip(self.uids, bounds, strict=True)
            ]
            merged = sorted_uids(np.concatenate(parts))
            repeats = merged[1:] == merged[:-1]
            if repeats.any():
                if self.repeated is None:
                    self.repeated = merged[int(repeats.argmax())]
                self.num_repeated += len(np.unique(merged[1:][repeats]))
            yield merged[np.concatenate([[True], ~repeats])] if len(merged) else merged

    def check_readable(self, way_out: str) -> None:
        """Raise InputError if a shard is damaged or missing."""
        if self.unreadable:
            path, problem = next(iter(sorted(self.unreadable.items())))
            raise InputError(
                f"{len(self.unreadable):,} of {len(self.tars):,} tars cannot be used, the first is "
                f"{path} ({problem}): download them again, or {way_out}"
            )

    def describe(self) -> list[str]:
        """Return facts on the shards, for the user; complete once `merged` has ended."""
        opened = sum(tar.opened for tar in self.tars)
        facts = [
            f"{len(self.tars):,} tars: {len(self.tars) - opened:,} by the tables beside them, "
            f"{opened:,} read themselves"
        ]
        if failed := sum(tar.failed for tar in self.tars):
            facts.append(f"{failed:,} rows of the tables are downloads that failed")
        if unusable := sum(tar.unusable for tar in self.tars):
            facts.append(f"{unusable:,} samples have no image or no usable uid: not listed")
        for path, problem in sorted(self.unreadable.items()):
            facts.append(f"cannot be used, or not to its end: {path} ({problem})")
        if self.repeated is not None:
            tars = " and ".join(self._tars_with(self.repeated)[:2])
            facts.append(
                f"{self.num_repeated:,} uids are there more than once (the first is "
                f"{format_uid(self.repeated)} in {tars}): training reads each copy"
            )
        return facts

    def _tars_with(self, uid: np.void) -> list[str]:
        return [
            tar.path
            for tar, uids in zip(self.tars, self.uids, strict=True)
            for _ in range(int(np.count_nonzero(uids == uid)))
        ]


def read_images(shards: Sequence[str], num_workers: int, journal: Journal | None = None) -> Images:
    """Find the images of tar shards: by img2dataset's table beside a tar, else in the tar.

    Args:
        shards: paths, or addresses that webdataset opens.
        num_workers: the number of threads for tables and of processes for tars.
        journal: gets a record of each shard; unchanged shards that it lists are not read again.
    """
    reader = _ImageReader(journal)
    versions = reader.skip_known(dict.fromkeys(shards))

    def read_table(path: str) -> bool:
        uids = uids_of_table(path)
        if uids is not None:
            reader.add(path, versions[path], uids)
        return uids is not None

    known = map_threads(read_table, versions, num_workers, "reading tables", "tar")
    rest = [path for path, done in zip(versions, known, strict=True) if not done]
    _read_tars(rest, num_workers, lambda path, uids: reader.add(path, versions[path], uids))
    return reader.finish()


class _ImageReader:
    """Collects the images of shards in the journal, or in memory if there is none."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._images = Images()
        self._recorded: list[Tar] = []  # in the journal
        self._lock = threading.Lock()

    def skip_known(self, shards: Iterable[str]) -> dict[str, list[Any] | None]:
        """Return the versions of the shards that have to be read.

        Shards in the journal and missing ones need no reading.
        """
        versions = {}
        for path in shards:
            version = _version(path)
            known = None if self._journal is None else self._journal.find(path, version)
            if known is not None:
                self._recorded.append(known)
            elif not is_stream(path) and not os.path.exists(path):
                self.add(path, version, _nothing("it is not there"))
            else:
                versions[path] = version
        return versions

    def add(self, path: str, version: list[Any] | None, tar_uids: TarUids) -> int:
        """Add a shard that was read; return its number of images."""
        problem = tar_uids.problem
        if problem is None and version != _version(path):
            problem = "it changed while it was read"
        uids = sorted_uids(tar_uids.uids)
        counts = tar_uids.failed, tar_uids.unusable, tar_uids.opened
        tar = Tar(path, version, len(uids), *counts)
        if self._journal is not None and problem is None:
            self._journal.append(tar, uids)
            self._recorded.append(tar)
            return len(uids)
        with self._lock:
            self._images.tars.append(tar)
            self._images.uids.append(uids)
            if problem is not None:
                self._images.unreadable[path] = problem
        return len(uids)

    def finish(self) -> Images:
        """Return the images of all shards; those in the journal are mapped from its file."""
        if self._journal is not None:
            self._images.uids += self._journal.uids(self._recorded)
            self._images.tars += self._recorded
        return self._images


def _read_tars(paths: Sequence[str], num_workers: int, add: Callable[[str, TarUids], int]) -> None:
    """Read the uids from each tar itself and pass them to `add`."""
    if not paths:
        return
    if min(num_workers, len(paths)) == 1:  # one worker needs no process of its own
        map_threads(lambda path: add(path, read_uids_of_tar(path)), paths, 1, "reading tars")
        return
    with ProcessEngine(min(num_workers, len(paths)), "cpu") as engine:
        items = {path: path for path in paths}
        errors = run_shards(engine, _make_reader, items, add, _RETRIES, "reading tars")
    for path, error in errors.items():
        add(path, _nothing(str(error)))


def _nothing(problem: str) -> TarUids:
    return TarUids(np.empty(0, UID_DTYPE), opened=True, problem=problem)


def _make_reader(device: str) -> Callable[[tuple[str, str]], TarUids]:
    return lambda item: read_uids_of_tar(item[1])


def sorted_uids(uids: NDArray[np.void]) -> NDArray[np.void]:
    """Return a sorted copy of a `u8,u8` array [n]."""
    halves = UidHalves(uids["f0"].copy(), uids["f1"].copy())
    sort_uids(halves.high, halves.low)
    return halves.uids


def _version(path: str) -> list[Any] | None:
    """Return the versions of a tar and its table as JSON; None if they are not known."""
    versions = []
    for name in (path, table_beside(path)):
        with contextlib.suppress(OSError, ValueError):
            versions.append(list(version_of(LocalFileSystem(), name)))
    return versions or None
