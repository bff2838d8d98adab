"""Folders of parquet files, local or in a cloud (fsspec), read column by column."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from datacomp_flyt.engines.threads import map_threads
from datacomp_flyt.errors import InputError

_BATCH = 1 << 18  # rows read at once

# Readers make arrays for as many rows as a footer says. No uid is there twice: as hashes they take
# 16 bytes each; counted up and compressed as well as parquet can, 44 of them take one.
_ROWS_IN_A_BYTE = 256


@dataclass(frozen=True)
class ParquetShard:
    """One parquet file: its path on a filesystem, number of rows and Arrow type of each column."""

    fs: Any
    path: str
    num_rows: int
    types: dict[str, pa.DataType]

    def version(self) -> tuple[int, str]:
        """Bytes, and what else changes with the file where its filesystem knows of it.

        Raises:
            InputError: it is not there any more.
        """
        with _readable(self.path):
            info = self.fs.info(self.path)
        marks = (info.get(name) for name in ("mtime", "LastModified", "updated", "etag", "ETag"))
        return int(info["size"]), next((str(mark) for mark in marks if mark), "")

    def batches(self, column: str) -> Iterator[pa.Array]:
        """One column, at most 262,144 rows at a time.

        Raises:
            InputError: the file turns out to be damaged.
        """
        for rows in self.rows((column,)):
            yield rows.column(0)

    def rows(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns side by side, at most 262,144 rows at a time.

        Raises:
            InputError: the file turns out to be damaged.
        """
        row = 0
        with _readable(self.path), _open(self.fs, self.path) as file:
            for column in columns:
                if file.schema_arrow.names.count(column) > 1:
                    raise InputError(f"{self.path} has column {column!r} twice: take one out")
            for batch in file.iter_batches(_BATCH, columns=list(columns), use_threads=False):
                places = [batch.schema.get_field_index(column) for column in columns]
                arrays = [batch.column(place) for place in places]
                row += batch.num_rows
                if row > self.num_rows:  # arrays have been made for as many
                    break
                yield pa.RecordBatch.from_arrays(arrays, list(columns))
            if row != self.num_rows:
                raise InputError(
                    f"{self.path} has another number of rows than the {self.num_rows:,} that it "
                    "says: download or write it again"
                )


def open_shards(
    directory: str, flag: str, num_workers: int, recursive: bool = False
) -> list[ParquetShard]:
    """The parquet files of a folder, sorted by name, each with a `uid` column.

    Args:
        directory: a local or cloud path, as fsspec spells them.
        flag: the flag that named the folder, for error messages.
        num_workers: threads.
        recursive: look into sub-folders too.

    Raises:
        InputError: no such folder, no parquet file in it, a damaged file, or one without `uid`.
    """
    try:
        fs, root = fsspec.core.url_to_fs(directory)
        if not fs.isdir(root):
            raise InputError(f"{flag} {directory} is not a folder: give one with parquet files")
        names = fs.find(root) if recursive else fs.ls(root, detail=False)
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{flag} {directory} cannot be listed ({_first_line(error)})") from None
    paths = sorted(str(name) for name in names if str(name).endswith(".parquet"))
    if not paths:
        raise InputError(f"{flag} {directory} holds no .parquet file: give the folder that does")

    return map_threads(lambda path: _describe(fs, path), paths, num_workers)


def open_file_or_folder(path: str, flag: str, num_workers: int) -> list[ParquetShard]:
    """One parquet file with a `uid` column, or those of a folder: see `open_shards`."""
    if not path.endswith(".parquet"):
        return open_shards(path, flag, num_workers, recursive=True)
    try:
        fs, root = fsspec.core.url_to_fs(path)
        there, folder = fs.exists(root), fs.isdir(root)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"{flag} {path} cannot be opened ({_first_line(error)})") from None
    if not there:
        raise InputError(f"{flag} {path} is not there: give a .parquet file, or a folder of them")
    return open_shards(path, flag, num_workers, recursive=True) if folder else [_describe(fs, root)]


def _describe(fs: Any, path: str) -> ParquetShard:
    with _readable(path), _open(fs, path) as file:
        schema = file.schema_arrow
        types = dict(zip(schema.names, schema.types, strict=True))
        if "uid" not in types:
            raise InputError(
                f"{path} has no column 'uid' (it has {', '.join(types)}): uids join a score "
                "to its example, so write them beside the scores"
            )
        num_rows, size = file.metadata.num_rows, fs.size(path)
        if not 0 <= num_rows <= _ROWS_IN_A_BYTE * size:
            raise InputError(
                f"{path} says that it has {num_rows:,} rows and has {size:,} bytes: download or "
                "write it again"
            )
        return ParquetShard(fs, path, num_rows, types)


@contextlib.contextmanager
def _open(fs: Any, path: str) -> Iterator[pq.ParquetFile]:
    if isinstance(fs, LocalFileSystem):
        yield pq.ParquetFile(path)
    else:
        with fs.open(path, "rb") as handle:
            yield pq.ParquetFile(handle)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Arrow and filesystems raise a dozen kinds of damaged files
        raise InputError(
            f"{path} cannot be read as parquet ({_first_line(error)}): download or write it again"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
