"""The journal of `datacomp-flyt available`, by which a killed run resumes.

The file has a first line and then, for each shard, a line of JSON, padded with spaces to a multiple
of 16 bytes, and the sorted uids.
"""

from __future__ import annotations

import contextlib
import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import check_notes_path
from datacomp_flyt.pool.uids import UID_DTYPE

_PAD = UID_DTYPE.itemsize
_MAGIC = b"datacomp_flyt available 1".ljust(2 * _PAD - 1) + b"\n"


@dataclass(frozen=True)
class Tar:
    """A shard that was read.

    Attributes:
        path: the path of the tar.
        version: the versions of the tar and its table; None if they are not known.
        num_images: the number of images with a uid.
        failed, unusable, opened: see `TarUids`.
    """

    path: str
    version: list[Any] | None
    num_images: int
    failed: int
    unusable: int
    opened: bool


class Journal:
    """The file with the records of the shards that have been read.

    Attributes:
        path: the path of the file.
    """

    def __init__(self, path: Path) -> None:
        """Read the records of an earlier run, up to an incomplete one.

        Raises:
            InputError: the file cannot be written, or is no journal.
        """
        self.path = check_notes_path(path, _MAGIC)
        self._known: dict[str, tuple[Tar, int]] = {}
        self._lock = threading.Lock()
        with self._written(), path.open("a+b") as file:
            file.seek(0)
            # complete the first line of a new file, or of one that was cut short
            file.write(_MAGIC[len(file.read(len(_MAGIC))) :])
            end = file.tell()
            while (record := _read_record(file)) is not None:
                tar, start = record
                self._known[tar.path] = record
                end = start + tar.num_images * _PAD
            file.truncate(end)

    def find(self, path: str, version: list[Any] | None) -> Tar | None:
        """Return the record of a shard; None if there is none or the shard has changed since."""
        tar, _ = self._known.get(path, (None, 0))
        return tar if tar and version is not None and tar.version == version else None

    def append(self, tar: Tar, uids: NDArray[np.void]) -> None:
        """Append the record of a shard. Raises InputError if the disk is full."""
        line = json.dumps([asdict(tar), zlib.crc32(uids.tobytes())]).encode()
        line += b" " * (-(len(line) + 1) % _PAD) + b"\n"
        with self._lock, self._written(), self.path.open("ab") as file:
            start = file.tell() + len(line)
            file.write(line + uids.tobytes())
            self._known[tar.path] = tar, start

    def uids(self, tars: Sequence[Tar]) -> list[NDArray[np.void]]:
        """Return the uids of recorded shards, mapped from the file."""
        content = np.memmap(self.path, np.uint8, "r")
        starts = [self._known[tar.path][1] for tar in tars]
        return [
            content[start : start + tar.num_images * _PAD].view(UID_DTYPE)
            for tar, start in zip(tars, starts, strict=True)
        ]

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror or error})") from None


def _read_record(file: Any) -> tuple[Tar, int] | None:
    """Read the next record and the offset of its uids; None if no complete record follows."""
    line = file.readline()
    try:
        entry, crc = json.loads(line)
        tar, start = Tar(**entry), file.tell()
        content = file.read(tar.num_images * _PAD)
        whole = len(content) == tar.num_images * _PAD and zlib.crc32(content) == crc
    except (ValueError, TypeError, RecursionError):
        return None
    return (tar, start) if whole else None
