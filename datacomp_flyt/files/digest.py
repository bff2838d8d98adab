"""Hashes of files that results depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.open_file import open_local

_BLOCK = 1 << 24  # bytes read at once


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_local(str(path)) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from None
    return digest.hexdigest()
