"""Records the provenance of a report: versions, and a hash of every input file."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pyarrow as pa

from datacomp_flyt import __version__
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.files.open_file import open_file
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.threads import map_threads

WHOLE = "all bytes"
FOOTER = "name, size and footer"

_TAIL = 8  # bytes at the end of a parquet file: the length of the footer, and PAR1
_BLOCK = 1 << 24


@dataclass(frozen=True)
class InputFile:
    """An input file: its size, its SHA-256 in hexadecimal, and the part that was hashed."""

    path: str
    size: int
    digest: str
    hashed: str


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape the page."""
    return {
        "datacomp_flyt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "matplotlib": matplotlib.__version__,
        "jinja2": jinja2.__version__,
    }


def hash_file(path: str | Path) -> InputFile:
    """Hash the bytes of a local file. Raises InputError if it cannot be read."""
    return InputFile(str(path), Path(path).stat().st_size, file_digest(path), WHOLE)


def hash_folder(
    shards: Sequence[ParquetShard], num_workers: int, max_whole: int = 64 << 20
) -> list[InputFile]:
    """Hash the files of a parquet folder, sorted by path.

    Files of a small folder are hashed whole. For a large folder, each hash covers the file's name,
    a line feed, its size, a line feed, and the parquet footer: rows, schema, and sizes, offsets and
    statistics of every column chunk.

    Args:
        shards: the files.
        num_workers: threads.
        max_whole: the largest size in bytes of a folder whose files are hashed whole.

    Raises:
        InputError: a file cannot be read.
    """
    sizes = [_size(shard) for shard in shards]
    whole = sum(sizes) <= max_whole

    def hashed(item: tuple[ParquetShard, int]) -> InputFile:
        shard, size = item
        digest = hashlib.sha256()
        try:
            with open_file(shard.fs, shard.path, shard.version()) as file:
                if not whole:
                    file.seek(size - _TAIL)
                    footer = int.from_bytes(file.read(4), "little")
                    file.seek(max(size - _TAIL - footer, 0))
                    digest.update(f"{shard.path.rsplit('/', 1)[-1]}\n{size}\n".encode())
                while block := file.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{shard.path} cannot be read ({error}): check the path") from None
        return InputFile(shard.path, size, digest.hexdigest(), WHOLE if whole else FOOTER)

    items = zip(shards, sizes, strict=True)
    return sorted(
        map_threads(hashed, items, num_workers, "hashing inputs"), key=lambda file: file.path
    )


def digest_of_all(files: Sequence[InputFile]) -> str:
    """Hash the lines `hash  path` of many files, in their order."""
    lines = "".join(f"{file.digest}  {file.path}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _size(shard: ParquetShard) -> int:
    try:
        return int(shard.fs.size(shard.path))
    except OSError as error:
        raise InputError(f"{shard.path} cannot be read ({error}): check the path") from None
