"""A filesystem in memory, `faulty://`, in which reads fail as planned."""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

Plan = Callable[[str, int], str | None]
"""The fault of a read, `EIO`, `short` or None, by the file's name and the number of the read."""


class FaultyFile(io.BytesIO):
    """A file whose reads are counted from 0, over all the times that it is opened."""

    def __init__(self, path: str, content: bytes) -> None:
        super().__init__(content)
        self.path = path

    def read(self, size: int | None = -1) -> bytes:
        number = FaultyFileSystem.reads[self.path]
        FaultyFileSystem.reads[self.path] += 1
        fault = FaultyFileSystem.plan(self.path, number)
        if fault == "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        content = super().read(size)
        if fault == "short":
            self.seek(-(len(content) - len(content) // 2), io.SEEK_CUR)
            content = content[: len(content) // 2]
        return content


class FaultyFileSystem(MemoryFileSystem):
    """A filesystem with files of its own, apart from those of `memory://`."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    reads: ClassVar[Counter[str]] = Counter()
    plan: ClassVar[Plan] = staticmethod(lambda path, number: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("faulty://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **options)
        return FaultyFile(path, self.store[path].getvalue())


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def upload(folder: Path, name: str) -> str:
    """Copy a folder to `faulty://name`, without planned faults or counted reads."""
    fs = fsspec.filesystem("faulty")
    for path in folder.iterdir():
        fs.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    plan(lambda path, number: None)
    return f"faulty://{name}"


def plan(faults: Plan) -> None:
    """Plan the faults of the reads that follow."""
    FaultyFileSystem.reads.clear()
    FaultyFileSystem.plan = staticmethod(faults)  # type: ignore[assignment]


def reads() -> dict[str, int]:
    """Return the number of reads of each file since then."""
    return dict(FaultyFileSystem.reads)
