"""Makes the list of the images in tar shards: their sorted uids, without repeats."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import version_of
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.pool.available import Available, read_available
from datacomp_flyt.pool.pool import sort_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.streams import say
from datacomp_flyt.tars.image_journal import Journal, Tar
from datacomp_flyt.tars.uids import TarUids, read_uids_of_tar, table_beside, uids_of_table
from datacomp_flyt.threads import map_threads

_ROWS = 1 << 22  # uids merged at once
_RETRIES = 1


@dataclass
class Images:
    """The images of shards.

    Attributes:
        tars: the shards.
        uids: the uids of each, sorted.
        unreadable: the problem of each damaged shard, by path; images before the damage are listed.
        repeated: a uid that occurs more than once.
        num_repeated: the number of such uids. Both attributes are set by `merged`.
    """

    tars: list[Tar] = field(default_factory=list)
    uids: list[NDArray[np.void]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    repeated: np.void | None = None
    num_repeated: int = 0

    def merged(self, rows_at_once: int = _ROWS) -> Iterator[NDArray[np.void]]:
        """All uids in order, each once, in blocks of about `rows_at_once`."""
        num_slices = -(-sum(map(len, self.uids)) // rows_at_once)
        starts = (np.arange(1, num_slices) * (2.0**64 / max(num_slices, 1))).astype(np.uint64)
        cuts = [
            [0, *np.ascontiguousarray(uids["f0"]).searchsorted(starts), len(uids)]
            for uids in self.uids
        ]
        for number in range(num_slices):
            parts = [
                uids[cut[number] : cut[number + 1]]
                for uids, cut in zip(self.uids, cuts, strict=True)
            ]
            uids = sorted_uids(np.concatenate(parts))
            again = uids[1:] == uids[:-1]
            if again.any():
                if self.repeated is None:
                    self.repeated = uids[int(again.argmax())]
                self.num_repeated += len(np.unique(uids[1:][again]))
            yield uids[np.concatenate([[True], ~again])] if len(uids) else uids

    def check_readable(self, way_out: str) -> None:
        """Raise InputError if a shard is damaged or missing."""
        if self.unreadable:
            path, problem = next(iter(sorted(self.unreadable.items())))
            number = len(self.unreadable)
            raise InputError(
                f"{number:,} of {len(self.tars):,} tars cannot be used, the first is "
                f"{path} ({problem}): download them again, or {way_out}"
            )

    def describe(self) -> list[str]:
        """Facts on what was read and merged."""
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
            where = " and ".join(self._tars_with(self.repeated)[:2])
            facts.append(
                f"{self.num_repeated:,} uids are there more than once (the first is "
                f"{format_uid(self.repeated)} in {where}): training reads each copy"
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
        shards: paths, or what webdataset opens.
        num_workers: threads for tables, processes for tars.
        journal: gets a note on each shard; shards that it has and that are unchanged are not read.
    """
    with needs_extra("train"):
        from datacomp_flyt.tars.shards import is_stream
    images = Images()
    noted: list[Tar] = []
    lock = threading.Lock()

    def keep(path: str, version: list[Any] | None, found: TarUids) -> int:
        problem = found.problem
        if problem is None and version != _version(path):
            problem = "it changed while it was read"
        uids = sorted_uids(found.uids)
        tar = Tar(path, version, len(uids), found.failed, found.unusable, found.opened)
        if journal is not None and problem is None:
            journal.append(tar, uids)
            noted.append(tar)
            return len(uids)
        with lock:
            images.tars.append(tar)
            images.uids.append(uids)
            if problem is not None:
                images.unreadable[path] = problem
        return len(uids)

    versions: dict[str, list[Any] | None] = {}
    for path in dict.fromkeys(shards):
        version = _version(path)
        known = None if journal is None else journal.find(path, version)
        if known is not None:
            noted.append(known)
        elif not is_stream(path) and not os.path.exists(path):
            keep(path, version, _nothing("it is not there"))
        else:
            versions[path] = version

    def by_table(path: str) -> bool:
        found = uids_of_table(path)
        if found is not None:
            keep(path, versions[path], found)
        return found is not None

    told = map_threads(by_table, versions, num_workers, "reading tables", "tar")
    left = [path for path, done in zip(versions, told, strict=True) if not done]
    _read_tars(left, num_workers, lambda path, found: keep(path, versions[path], found))
    if journal is not None:
        images.uids += journal.uids(noted)
        images.tars += noted
    return images


def _read_tars(paths: Sequence[str], num_workers: int, keep: Callable[[str, TarUids], int]) -> None:
    """Read the uids from each tar itself and pass them to `keep`."""
    if not paths:
        return
    if min(num_workers, len(paths)) == 1:  # one worker needs no process of its own
        map_threads(lambda path: keep(path, read_uids_of_tar(path)), paths, 1, "reading tars")
        return
    with ProcessEngine(min(num_workers, len(paths)), "cpu") as engine:
        items = {path: path for path in paths}
        errors = run_shards(engine, _make_reader, items, keep, _RETRIES, "reading tars")
    for path, error in errors.items():
        keep(path, _nothing(str(error)))


def _nothing(problem: str) -> TarUids:
    return TarUids(np.empty(0, UID_DTYPE), opened=True, problem=problem)


def _make_reader(device: str) -> Callable[[tuple[str, str]], TarUids]:
    return lambda item: read_uids_of_tar(item[1])


def sorted_uids(uids: NDArray[np.void]) -> NDArray[np.void]:
    """The same uids in order, as a new array."""
    high, low = uids["f0"].copy(), uids["f1"].copy()
    sort_uids(high, low)
    result = np.empty(len(uids), UID_DTYPE)
    result["f0"], result["f1"] = high, low
    return result


def write_list(path: Path, images: Images) -> int:
    """Write a list as `numpy.save` would, in blocks; return the number of images.

    Raises:
        InputError: the disk is full, or there is no image.
    """
    number = 0
    with atomic_write(path) as file:
        file.write(_header(0))
        for uids in images.merged():
            file.write(uids.data)
            number += len(uids)
        if not number:
            raise InputError(
                f"none of the {len(images.tars):,} tars holds an image with a uid: give the tars "
                "that img2dataset or DataComp's download_upstream.py wrote"
            )
        file.seek(0)
        file.write(_header(number))  # as long as the first header
    return number


def _header(number: int) -> bytes:
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(UID_DTYPE)
    fields = {"descr": descr, "fortran_order": False, "shape": (number,)}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def available_in(shards_dir: str, flag: str, num_workers: int) -> Available:
    """Make the list of the images in tar shards in memory, and print facts on them.

    Raises:
        InputError: see `list_shards`; a shard cannot be read; or there is no image.
    """
    with needs_extra("train"):
        from datacomp_flyt.tars.shards import list_shards
    name = f"{flag} {shards_dir}"
    images = read_images(list_shards(shards_dir, flag), num_workers)
    images.check_readable(
        "list the readable images (`datacomp-flyt available --allow_unreadable`) and give that "
        "list as --available"
    )
    uids = np.concatenate([np.empty(0, UID_DTYPE), *images.merged()])
    for fact in images.describe():
        say(f"{name}: {fact}")
    if not len(uids):
        raise InputError(f"{name} holds no image with a uid: give the tars of the pool")
    say(f"{name}: {len(uids):,} examples with an image")
    return Available(name, uids)


def _version(path: str) -> list[Any] | None:
    """The versions of a tar and its table as JSON; None if they are not known."""
    versions = []
    for name in (path, table_beside(path)):
        with contextlib.suppress(OSError, ValueError):
            versions.append(list(version_of(LocalFileSystem(), name)))
    return versions or None


def available_images(
    available: str | None, shards_dir: str | None, num_workers: int
) -> Available | None:
    """Open the list of images that `--available` or `--shards_dir` names; None if neither is given.

    Args:
        available: path of a list made by `datacomp-flyt available`.
        shards_dir: the tars, from which the list is made in memory.
        num_workers: threads for tables, processes for tars.

    Raises:
        InputError: both are given; or see `read_available` and `available_in`.
    """
    if available is not None and shards_dir is not None:
        raise InputError("--available and --shards_dir both list the images: leave one out")
    if available is not None:
        return read_available(available)
    if shards_dir is not None:
        return available_in(shards_dir, "--shards_dir", num_workers)
    return None
