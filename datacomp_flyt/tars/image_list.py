"""Lists the images in tar shards: their uids, sorted and without repeats."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import atomic_write, check_save_path, remove_unfinished
from datacomp_flyt.pool.available import Available, read_available
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.uid_search import UidHalves, sort_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.streams import say
from datacomp_flyt.tars.image_journal import Journal, Tar
from datacomp_flyt.tars.shards import is_stream, list_shards
from datacomp_flyt.tars.uids import TarUids, read_uids_of_tar, table_beside, uids_of_table
from datacomp_flyt.threads import check_num_workers, map_threads

_ROWS = 1 << 22  # uids merged at once
_RETRIES = 1


@dataclass(frozen=True)
class ImageList:
    """The result of `list_images`.

    Attributes:
        path: the file with the list, which `--available` of other commands takes.
        num_images: the number of uids in the list.
        num_tars: the number of tars that were read.
        unreadable: the problem of each damaged or missing tar, by path.
    """

    path: Path
    num_images: int
    num_tars: int
    unreadable: dict[str, str]


def list_images(
    shards: str,
    *,
    save_path: str | Path,
    allow_unreadable: bool = False,
    num_workers: int | None = None,
) -> ImageList:
    """List the examples whose image is in some tar shards, and save their sorted uids.

    The uids come from img2dataset's table beside each tar, or from the tar itself if the table
    cannot be used. A killed run resumes. Facts on the shards are printed.

    Args:
        shards: a folder, a pattern with braces, or addresses that webdataset opens.
        save_path: the .npy file to write, a sorted `u8,u8` array.
        allow_unreadable: also list the images of damaged tars, up to the damage.
        num_workers: the number of threads for tables and of processes for tars; one per core by
            default.

    Raises:
        InputError: there is no tar or no image; a tar cannot be read and that is not allowed; or
            the list cannot be written.
    """
    num_workers = check_num_workers(num_workers)
    paths = list_shards(shards, "SHARDS")
    path = check_save_path(save_path, "--save_path")
    journal_path = check_save_path(path.with_name(f"{path.name}.tars"), "the notes")
    outputs = [Output("--save_path", path), Output("the notes", journal_path)]
    check_outputs(outputs, {"shards": shards})
    with lock_outputs(path, journal_path):
        remove_unfinished(path)
        images = read_images(paths, num_workers, Journal(journal_path))
        if not allow_unreadable:
            images.check_readable("list what can be read of them with --allow_unreadable")
        num_images = write_list(path, images)
        for fact in images.describe():
            say(f"  {fact}")
        journal_path.unlink()
    say(f"saved {path}: {num_images:,} examples with an image")
    return ImageList(path, num_images, len(images.tars), images.unreadable)


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


def write_list(path: Path, images: Images) -> int:
    """Write a list of images as `numpy.save` would, in blocks; return their number.

    Raises:
        InputError: the disk is full, or there is no image.
    """
    num_images = 0
    with atomic_write(path) as file:
        file.write(_header(0))
        for uids in images.merged():
            file.write(uids.data)
            num_images += len(uids)
        if not num_images:
            raise InputError(
                f"none of the {len(images.tars):,} tars holds an image with a uid: give the tars "
                "that img2dataset or DataComp's download_upstream.py wrote"
            )
        file.seek(0)
        file.write(_header(num_images))  # as long as the first header
    return num_images


def _header(length: int) -> bytes:
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(UID_DTYPE)
    fields = {"descr": descr, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def available_in(shards_dir: str, flag: str, num_workers: int) -> Available:
    """List the images of tar shards in memory, and print facts on them.

    Raises:
        InputError: see `list_shards`; a shard cannot be read; or there is no image.
    """
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
    """Return the versions of a tar and its table as JSON; None if they are not known."""
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
        available: the path of a list made by `list_images`.
        shards_dir: the tars, from which the list is made in memory.
        num_workers: the number of threads for tables and of processes for tars.

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
