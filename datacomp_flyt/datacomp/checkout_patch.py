"""Inserts the plugin's lines into a DataComp checkout, finds them there, and removes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datacomp_flyt.errors import InputError


@dataclass(frozen=True)
class Insertion:
    """Lines to add after line `after_line` (1-based) of the original file."""

    after_line: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Patch:
    """Added lines for one known version of one file; nothing is ever changed or removed.

    Attributes:
        repository, commit: where that version is from.
        file: its path in the checkout.
        sha256, sha256_patched: of its bytes without and with the lines.
        insertions: the lines, in order.
    """

    repository: str
    commit: str
    file: str
    sha256: str
    sha256_patched: str
    insertions: tuple[Insertion, ...]

    def applied_to(self, content: bytes) -> bytes:
        """The file with the added lines."""
        lines = content.splitlines(keepends=True)
        for insertion in reversed(self.insertions):
            added = [f"{line}\n".encode() for line in insertion.lines]
            lines[insertion.after_line : insertion.after_line] = added
        return b"".join(lines)

    def removed_from(self, content: bytes) -> bytes:
        """The file without the added lines."""
        lines = content.splitlines(keepends=True)
        for insertion in self.insertions:  # in file order, each moves the next to its old place
            del lines[insertion.after_line : insertion.after_line + len(insertion.lines)]
        return b"".join(lines)


def load_patches(folder: Path | None = None) -> list[Patch]:
    """The patches of a folder of JSON files; by default those that come with the package."""
    if folder is None:
        package = Path(__file__).parents[1]
        folder = package / "patches"  # of an installed package
        if not folder.is_dir():
            folder = package.parent / "patches"  # of a checkout
    patches = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text())
        insertions = tuple(
            Insertion(insertion["after_line"], tuple(insertion["lines"]))
            for insertion in values.pop("insertions")
        )
        patches.append(Patch(**values, insertions=insertions))
    return patches


def install(directory: Path, patches: Sequence[Patch]) -> bool:
    """Add the lines; False if they are there already.

    Raises:
        InputError: no such file, or one that is neither the known version nor patched.
    """
    path, patch, patched = _state(directory, patches)
    if not patched:
        _replace(path, patch.applied_to(path.read_bytes()), patch.sha256_patched)
    return not patched


def check(directory: Path, patches: Sequence[Patch]) -> bool:
    """Are the lines there?

    Raises:
        InputError: as `install`.
    """
    return _state(directory, patches)[2]


def revert(directory: Path, patches: Sequence[Patch]) -> bool:
    """Take the lines out, byte for byte; False if they were not there.

    Raises:
        InputError: as `install`.
    """
    path, patch, patched = _state(directory, patches)
    if patched:
        _replace(path, patch.removed_from(path.read_bytes()), patch.sha256)
    return patched


def _state(directory: Path, patches: Sequence[Patch]) -> tuple[Path, Patch, bool]:
    """The file to patch, the patch that fits it, and whether it is in."""
    for patch in patches:
        path = directory / patch.file
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest in (patch.sha256, patch.sha256_patched):
                return path, patch, digest == patch.sha256_patched
    known = ", ".join(f"{patch.repository} {patch.commit}" for patch in patches)
    files = sorted({patch.file for patch in patches})
    if not any((directory / file).is_file() for file in files):
        raise InputError(
            f"{directory} has no {' or '.join(files)}: give the folder of a DataComp checkout"
        )
    raise InputError(
        f"{directory / files[0]} is not the file of {known}, with or without our lines, and is "
        "left as it is: check that commit out, or use `python -m baselines_plugin` instead"
    )


def _replace(path: Path, content: bytes, sha256: str) -> None:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"the patch for {path} is damaged: install datacomp-flyt again")
    # imported here: it imports NumPy, which `install --check` does without
    from datacomp_flyt.files.output_files import atomic_write

    mode = path.stat().st_mode
    with atomic_write(path) as file:
        file.write(content)
    path.chmod(mode)
