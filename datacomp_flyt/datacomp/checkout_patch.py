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
        repository, commit: the origin of that version.
        file: the file's path in the checkout.
        sha256, sha256_patched: the hashes of the file without and with the lines.
        insertions: the lines, in the order of the file.
    """

    repository: str
    commit: str
    file: str
    sha256: str
    sha256_patched: str
    insertions: tuple[Insertion, ...]

    def applied_to(self, content: bytes) -> bytes:
        """Return the file with the added lines."""
        lines = content.splitlines(keepends=True)
        for insertion in reversed(self.insertions):
            added = [f"{line}\n".encode() for line in insertion.lines]
            lines[insertion.after_line : insertion.after_line] = added
        return b"".join(lines)

    def removed_from(self, content: bytes) -> bytes:
        """Return the file without the added lines."""
        lines = content.splitlines(keepends=True)
        for insertion in self.insertions:  # each removal moves the next one to its original line
            del lines[insertion.after_line : insertion.after_line + len(insertion.lines)]
        return b"".join(lines)


def load_patches(folder: Path | None = None) -> list[Patch]:
    """Load the patches of a folder of JSON files; by default those of the package."""
    if folder is None:
        package = Path(__file__).parents[1]
        folder = package / "patches"  # in an installed package
        if not folder.is_dir():
            folder = package.parent / "patches"  # in a clone of the repository
    patches = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text())
        insertions = tuple(
            Insertion(insertion["after_line"], tuple(insertion["lines"]))
            for insertion in values.pop("insertions")
        )
        patches.append(Patch(**values, insertions=insertions))
    return patches


def install(directory: str | Path, *, patches: Sequence[Patch] | None = None) -> bool:
    """Insert the plugin's lines into a DataComp checkout.

    Args:
        directory: the folder of the checkout.
        patches: one patch for each known version of the file; by default those of the package.

    Returns:
        whether the lines were added; False if they were there already.

    Raises:
        InputError: the checkout lacks the file, or the file is neither a known version of it nor a
            patched one.
    """
    path, patch, patched = _state(directory, patches)
    if not patched:
        _replace(path, patch.applied_to(path.read_bytes()), patch.sha256_patched)
    return not patched


def is_installed(directory: str | Path, *, patches: Sequence[Patch] | None = None) -> bool:
    """Return whether the plugin's lines are in a DataComp checkout.

    Args and errors are those of `install`.
    """
    return _state(directory, patches)[2]


def revert(directory: str | Path, *, patches: Sequence[Patch] | None = None) -> bool:
    """Remove the plugin's lines from a DataComp checkout, which restores the file byte for byte.

    Args and errors are those of `install`.

    Returns:
        whether lines were removed; False if there were none.
    """
    path, patch, patched = _state(directory, patches)
    if patched:
        _replace(path, patch.removed_from(path.read_bytes()), patch.sha256)
    return patched


def _state(directory: str | Path, patches: Sequence[Patch] | None) -> tuple[Path, Patch, bool]:
    """Return the file to patch, the patch that fits it, and whether it is applied."""
    directory = Path(directory)
    patches = load_patches() if patches is None else patches
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
    # imported here because it imports NumPy, and `install --check` runs without NumPy
    from datacomp_flyt.files.output_files import atomic_write

    mode = path.stat().st_mode
    with atomic_write(path) as file:
        file.write(content)
    path.chmod(mode)
