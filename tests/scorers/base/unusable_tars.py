"""Tars of which no sample can be used, each for a reason of its own."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from datacomp_flyt.cli import main
from tests.scorers.base.image_tars import sample

ROWS = 3

Members = Iterable[tuple[str, bytes]]


def write_members(path: Path, members: Members) -> Path:
    """A tar of files in just this order; a name that ends in / is a folder."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def by_extension(*extensions: str) -> Members:
    return [(f"{n:05d}.{end}", sample(n)[end]) for end in extensions for n in range(ROWS)]


def changed(**changes: bytes | None) -> Members:
    for number in range(ROWS):
        for end, content in sample(number, **changes).items():
            yield f"{number:05d}.{end}", content


def in_folders() -> Members:
    """A folder for each extension, so that no two files have one key."""
    for number in range(ROWS):
        for end, content in sample(number).items():
            yield f"{end}/{number:05d}.{end}", content


UNUSABLE: dict[str, Callable[[], Members]] = {
    "images first": lambda: by_extension("jpg", "json", "txt"),
    "json first": lambda: by_extension("json", "jpg", "txt"),
    "captions first": lambda: by_extension("txt", "json", "jpg"),
    "in folders": in_folders,
    "no image": lambda: changed(jpg=None),
    "no json": lambda: changed(json=None),
    "no uid": lambda: changed(json=b"{}"),
    "uid of another kind": lambda: changed(json=b'{"uid": "7"}'),
    "json is no json": lambda: changed(json=b"{"),
    "images are no images": lambda: changed(jpg=b"<html>404</html>"),
    "empty images": lambda: changed(jpg=b""),
    "no caption": lambda: changed(txt=None),
    "caption is no text": lambda: changed(txt=b"\xff\xfe"),
    "no extensions": lambda: [(f"{n:05d}", sample(n)["jpg"]) for n in range(ROWS)],
    "folders alone": lambda: [("a/", b""), ("b/", b"")],
}


def finished(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))


def ends(words: list[object], code: int = 0) -> None:
    """Run a command in this process, and check its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert ended.value.code == code
