"""Checks that no output of a command replaces one of its inputs or becomes one.

Existing files are compared by device and inode, which finds links, hard links, bind mounts and
names that differ in case; other paths are compared by their resolved names.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import check_unchanged, version_of
from datacomp_flyt.files.listing import PassedOver, has_ending, list_local, local_path
from datacomp_flyt.pool.parquet import open_shards

# Endings of the files that a command reads in a folder, and whether in its sub-folders too.
_FOLDERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "metadata_dir": ((".parquet", ".npz"), False),
    "scores_dir": ((".parquet",), True),
    "shards_dir": ((".tar", ".parquet"), False),  # img2dataset's tables lie beside its tars
    "shards": ((".tar", ".parquet"), False),
}
_OTHERS = (".parquet", ".npz", ".tar"), True
# Single files that a command reads in a folder; version 0.1.0 called the subset mix.npy.
_FILES = {"run_dir": ("subset.npy", "mix.npy", "finished.json")}
_NO_PATHS = {
    "arch", "argv", "arrays", "column", "command", "device", "engine", "fraction_of", "name",
    "preset", "sampling", "scale", "score", "score_columns", "scorer", "source",
}  # fmt: skip
_POSITIONAL = {"folder", "script", "shards"}
_PATTERN = re.compile(r"[*?\[{]")


@dataclass(frozen=True)
class Output:
    """A file that a command writes, or files of a folder.

    Attributes:
        flag: the flag that names it.
        path: the file, or the folder.
        files: if the path is a folder, patterns of the files written in it, such as `*.parquet`.
        whole: whether the folder belongs to this command alone.
        column: the score column of a parquet file, which may be written among score tables that
            lack this column.
    """

    flag: str
    path: Path
    files: tuple[str, ...] = ()
    whole: bool = False
    column: str | None = None

    def paths(self) -> list[Path]:
        """The files that are written."""
        return [self.path / name for name in self.files] or [self.path]

    def __str__(self) -> str:
        return f"{self.flag} {self.path}"


@dataclass(frozen=True)
class _Input:
    """A local file or folder that a command reads."""

    flag: str
    path: Path
    endings: tuple[str, ...] = ()
    recursive: bool = False

    def __str__(self) -> str:
        return f"{self.flag} {self.path}"


def check_outputs(outputs: Iterable[Output], flags: Mapping[str, Any]) -> None:
    """Raise InputError unless the outputs are files of their own, apart from all inputs.

    Args:
        outputs: all files that the command writes.
        flags: the flags of the command by name. A value that names an existing local file or
            folder is an input, unless an output has its flag.
    """
    outputs = list(outputs)
    inputs = list(_inputs(flags, outputs))
    for index, output in enumerate(outputs):
        for other in outputs[:index]:
            _check_apart(other, output)
        for source in inputs:
            if output.whole and _is_within(source.path, output.path):
                raise InputError(
                    f"{source} lies in {output}, which this command fills: name another folder "
                    "there"
                )
            for path in output.paths():
                _check_file(output, path, source)


def watch_inputs(flags: Mapping[str, Any]) -> Callable[[], None]:
    """Note the versions of the single files that flags name.

    Returns:
        a function that raises InputError if one of these files has changed.
    """
    fs = LocalFileSystem()
    files = [source.path for source in _inputs(flags, ()) if source.path.is_file()]
    versions = {str(path): version_of(fs, str(path)) for path in files}
    return lambda: check_unchanged(fs, versions)


def _inputs(flags: Mapping[str, Any], outputs: Iterable[Output]) -> Iterator[_Input]:
    written = {output.flag.lstrip("-") for output in outputs}
    for name, value in flags.items():
        if name in written or name in _NO_PATHS:
            continue
        flag = f"the {name}" if name in _POSITIONAL else f"--{name}"
        for word in value if isinstance(value, list | tuple) else [value]:
            for path, deep in _paths(word) if isinstance(word, str | Path) else ():
                endings, recursive = _FOLDERS.get(name, _OTHERS)
                yield _Input(flag, path, endings, recursive or deep)
                if has_ending(path.name, (".tar", ".npz")):  # a table beside it is read too
                    yield _Input(flag, path.with_suffix(".parquet"))
                yield from (_Input(flag, path / file) for file in _FILES.get(name, ()))


def _paths(word: str | Path) -> Iterator[tuple[Path, bool]]:
    """Yield the existing files and folders that a word of a command names.

    A word may also be NAME=FILE, PREFIX=MODEL:FILE, file://FILE, or a pattern, which stands for the
    folder of its files. Each path comes with a flag whether its sub-folders are inputs too.
    """
    word = local_path(str(word)) or ""
    for text in {word, word.partition("=")[2], word.rpartition(":")[2]} - {""}:
        with contextlib.suppress(OSError, ValueError):  # the word is no valid path
            path, deep = Path(text), False
            if not path.exists() and (pattern := _PATTERN.search(text)):
                path = Path(os.path.dirname(text[: pattern.start()]))
                deep = "/" in text[pattern.start() :]
            if path.exists():
                yield path, deep


def _check_apart(output: Output, other: Output) -> None:
    for path in output.paths():
        if any(_is_same(path, other_path) for other_path in other.paths()):
            raise InputError(
                f"{output} and {other} name one file twice: give each output a file of its own"
            )
    for inner, outer in ((output, other), (other, output)):
        if outer.whole and _is_within(inner.path, outer.path):
            raise InputError(
                f"{inner} lies in {outer}, which is for the command's own files: "
                "name a file elsewhere"
            )


def _check_file(output: Output, path: Path, source: _Input) -> None:
    """Raise InputError if an output is an input, or lies among the files of an input."""
    if source.path.is_dir():
        is_read = path.is_file() and any(_is_same(path, file) for file in _listed(source))
    else:
        is_read = _is_same(path, source.path)
    if is_read:
        raise InputError(
            f"{output} is a file that this command reads ({source}): name another file to write"
        )
    if not source.path.is_dir() or not any(_lies_among(name, source) for name in _names(path)):
        return
    if output.column is None or source.flag != "--scores_dir":
        raise InputError(
            f"{output} lies in {source} under a name that is read as a file of that folder: write "
            "elsewhere"
        )
    for shard in open_shards(str(source.path), source.flag, 1, recursive=True):
        if output.column in shard.types:
            raise InputError(
                f"{output} lies in {source}, where {shard.path} has the column {output.column!r}, "
                "too: the next run would find scores twice, so write elsewhere"
            )


def _listed(source: _Input) -> list[str]:
    try:
        return list_local(str(source.path), source.endings, source.recursive, PassedOver())
    except (OSError, InputError):  # the command that reads the folder reports this
        return []


def _names(path: Path) -> set[Path]:
    """Return a path and, if it is a link, its target."""
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


def _lies_among(path: Path, source: _Input) -> bool:
    """Return whether a file of this path would be listed among the files of an input folder."""
    if not PassedOver().keeps(path.name, source.endings):
        return False
    for folder in path.parents:
        if _is_same(folder, source.path):
            return True
        if not source.recursive or folder.name.startswith((".", "_")):
            break
    # links to folders are followed
    folders = {os.path.dirname(file) for file in _listed(source)} if source.recursive else set()
    return any(_is_same(folder, path.parent) for folder in folders)


def _is_within(path: Path, folder: Path) -> bool:
    return any(_is_same(p, folder) for name in _names(path) for p in (name, *name.parents))


def _is_same(path: Path | str, other: Path | str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)
