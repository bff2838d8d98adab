"""Replaces a file by one of the same size and times, in each way that programs do it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def dated(path: Path, like: os.stat_result) -> None:
    time.sleep(0.02)  # some kernels count changes in ticks of 10 ms
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def renamed(path: Path, content: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content)
    dated(new, path.stat())
    new.replace(path)


def rewritten(path: Path, content: bytes) -> None:
    before = path.stat()
    path.write_bytes(content)
    dated(path, before)


def removed_and_made(path: Path, content: bytes) -> None:
    before = path.stat()
    path.unlink()
    path.write_bytes(content)
    dated(path, before)


def linked(path: Path, content: bytes) -> None:
    before = path.stat()
    path.unlink()
    other = path.with_name("other")
    other.write_bytes(content)
    dated(other, before)
    path.symlink_to(other)


def hard_linked(path: Path, content: bytes) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(content)
    dated(other, before)
    path.unlink()
    path.hardlink_to(other)


def copied(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    dated(other, path.stat())
    path.unlink()
    shutil.copy2(other, path)


REPLACE = [renamed, rewritten, removed_and_made, linked, hard_linked, copied]
Replace = Callable[[Path, bytes], None]
