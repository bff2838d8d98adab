"""The list of available images: the sorted uids of the examples whose image is on disk."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import check_unchanged, version_of
from datacomp_flyt.files.listing import local_path
from datacomp_flyt.files.open_file import Version, map_npy
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.pool.uid_search import argsort_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.threads import blocks

_BLOCK = 1 << 22  # uids checked at once
_NUM_RANGES = 1 << 16  # ranges of uids whose bounds are computed once
_WAY_OUT = "make one with `datacomp-flyt available TARS --save_path FILE`"


@dataclass(frozen=True)
class Available:
    """A list of the uids that have an image.

    Attributes:
        name: the flag and its value, for messages.
        uids: `u8,u8` array [n], n >= 1, sorted without repeats; mapped from the file if there is
            one.
        path: the path of the file; None for a list in memory.
        version: the version of the file when it was opened.
    """

    name: str
    uids: NDArray[np.void]
    path: str | None = None
    version: Version | None = None

    def __post_init__(self) -> None:
        starts = np.arange(_NUM_RANGES, dtype=np.uint64) << np.uint64(48)
        first = np.zeros(_NUM_RANGES, np.int64)
        ends = self._bisect(starts, np.zeros_like(starts), first, np.full_like(first, len(self)))
        object.__setattr__(self, "_ends", np.append(ends, len(self)))

    def __len__(self) -> int:
        return len(self.uids)

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker opens the same file instead of receiving its content
        return _reopen, (self.name, None if self.path else self.uids, self.path, self.version)

    def contains(self, uids: NDArray[np.void]) -> NDArray[np.bool_]:
        """Return whether each of these uids [m], in any order, has an image."""
        order = argsort_uids(uids["f0"], uids["f1"])  # neighbours in the list are read together
        high, low = uids["f0"].take(order), uids["f1"].take(order)
        ranges = (high >> np.uint64(48)).astype(np.int64)
        ends: NDArray[np.int64] = vars(self)["_ends"]
        rows = self._bisect(high, low, ends[ranges], ends[ranges + 1])
        nearest = self.uids[np.minimum(rows, len(self) - 1)]
        contained = np.empty(len(uids), np.bool_)
        contained[order] = (rows < len(self)) & (nearest["f0"] == high) & (nearest["f1"] == low)
        return contained

    def _bisect(
        self,
        high: NDArray[np.uint64],
        low: NDArray[np.uint64],
        first: NDArray[np.int64],
        end: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Find the row of the first uid >= each pair, from `first` to `end`, by binary search.

        `numpy.searchsorted` would copy the first halves of all uids, which may exceed memory.
        """
        while (searching := first < end).any():
            middle = (first + end) // 2
            uids = self.uids[np.minimum(middle, len(self) - 1)]
            below = (uids["f0"] < high) | ((uids["f0"] == high) & (uids["f1"] < low))
            first = np.where(searching & below, middle + 1, first)
            end = np.where(searching & ~below, middle, end)
        return first

    def identity(self) -> list[Any]:
        """Identify the list as JSON: by its file and version, or by a hash of its uids."""
        if self.path is not None and self.version is not None:
            return [os.path.abspath(self.path), *self.version]
        return [hashlib.sha256(np.ascontiguousarray(self.uids).data).hexdigest()]

    def in_file(self, path: Path) -> Available:
        """Return the list as a file, which is written to `path` if the list is in memory."""
        if self.path is not None:
            return self
        with atomic_write(path) as file:
            np.save(file, self.uids)
        uids = _map(str(path), self.name)
        return Available(self.name, uids, str(path), version_of(LocalFileSystem(), str(path)))

    def check_unchanged(self) -> None:
        """Raise InputError if the file has changed since it was opened."""
        if self.path is not None and self.version is not None:
            check_unchanged(LocalFileSystem(), {self.path: self.version})


def _reopen(
    name: str, uids: NDArray[np.void] | None, path: str | None, version: Version | None
) -> Available:
    if path is None:
        assert uids is not None
        return Available(name, uids)
    available = _opened(name, path, version)
    available.check_unchanged()
    return available


@functools.lru_cache(1)
def _opened(name: str, path: str, version: Version | None) -> Available:
    """Open a list in a file. A worker receives it with each item and opens it once."""
    return Available(name, _map(path, name), path, version)


def read_available(path: str, flag: str = "--available") -> Available:
    """Open a list of `datacomp-flyt available`.

    Raises:
        InputError: the file does not exist or is no such list.
    """
    name = f"{flag} {path}"
    local = local_path(path)
    if local is None:
        raise InputError(f"{name} is a cloud path: copy the list to a local file")
    path = local
    if not os.path.isfile(path):
        raise InputError(f"{name} is no file: {_WAY_OUT}")
    version = version_of(LocalFileSystem(), path)
    uids = _map(path, name)
    if not len(uids):
        raise InputError(f"{name} names no image at all: {_WAY_OUT}")
    for block in blocks(len(uids) - 1, _BLOCK):
        here, after = uids[block], uids[block.start + 1 : block.stop + 1]
        same_high = after["f0"] == here["f0"]
        rises = (after["f0"] > here["f0"]) | (same_high & (after["f1"] > here["f1"]))
        if not rises.all():
            row = int(rises.argmin())
            if here[row] == after[row]:
                raise InputError(
                    f"{name} has uid {format_uid(here[row])} more than once, as a subset may and "
                    f"a list of images may not: {_WAY_OUT}"
                )
            raise InputError(
                f"{name} is not sorted (entry {block.start + row + 1:,} is below the one before "
                f"it): {_WAY_OUT}"
            )
    return Available(name, uids, path, version)


def _map(path: str, name: str) -> NDArray[np.void]:
    try:
        uids: NDArray[np.void] = map_npy(path)
    except Exception as error:  # NumPy's header parser raises many types
        raise InputError(f"{name} cannot be read as .npy ({error}): {_WAY_OUT}") from None
    if uids.dtype != UID_DTYPE or uids.ndim != 1:
        raise InputError(
            f"{name} holds {uids.dtype} {list(uids.shape)} and a list of images holds 'u8,u8' in "
            f"one dimension: {_WAY_OUT}"
        )
    return uids
