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
"""A function of a file's name and the index of a read; it returns "EIO", "short" or None."""


class FaultyFile(io.BytesIO):
    """A file whose reads are counted from 0; the count goes on when the file is opened again."""

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
    """A memory filesystem whose files are separate from those of `memory://`."""

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
    """Copy a folder to `faulty://name`; the plan is not applied, and reads are not counted."""
    fs = fsspec.filesystem("faulty")
    for path in folder.iterdir():
        fs.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    plan(lambda path, number: None)
    return f"faulty://{name}"


def plan(faults: Plan) -> None:
    """Set the faults of the following reads, and reset their counts."""
    FaultyFileSystem.reads.clear()
    FaultyFileSystem.plan = staticmethod(faults)  # type: ignore[assignment]


def reads() -> dict[str, int]:
    """Return the number of reads of each file since the last call of `plan`."""
    return dict(FaultyFileSystem.reads)
