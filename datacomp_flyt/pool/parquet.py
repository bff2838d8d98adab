"""Reads parquet files of a folder, local or in a cloud (fsspec), column by column."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError, first_line
from datacomp_flyt.files.folders import check_unchanged, list_folder, version_of
from datacomp_flyt.files.listing import has_ending, is_folder, resolve_path
from datacomp_flyt.files.open_file import Version, open_file, readable
from datacomp_flyt.pool.arrow_types import is_kind, plain_column, value_type
from datacomp_flyt.pool.parquet_file import open_parquet
from datacomp_flyt.pool.uids import InvalidUid, decode_uids
from datacomp_flyt.threads import map_threads

KEY = "key"
"""The column of img2dataset's tables that numbers the samples of a download."""

STATUS, SUCCESS = "status", "success"
"""The column of img2dataset's tables with the result of a download, and its value for success."""

_PARQUET = ("parquet", "download or write it again")
_BATCH = 1 << 18  # rows read at once

# Readers allocate arrays for the number of rows in a footer, which may be damaged. No uid repeats:
# as hashes they take 16 bytes each, and consecutive numbers, compressed best, 44 of them a byte.
_MOST_ROWS_PER_BYTE = 256


class UidLookup(Protocol):
    """Looks up uids by another key, as `tars.download_keys.DownloadKeys` does by img2dataset's."""

    @property
    def name(self) -> str:
        """The flag and its value, for messages."""

    def read(self) -> None:
        """Read what the lookup needs; raises `InputError`."""

    def uids_of(self, keys: pa.Array) -> NDArray[np.void]:
        """The uids [n] of keys [n]; raises `InvalidUid`."""


@dataclass(frozen=True)
class ParquetShard:
    """One parquet file.

    Attributes:
        fs: the filesystem of the file.
        path: the path of the file.
        num_rows: the number of rows.
        types: the Arrow type of each column.
        versions: the versions, at opening, of the file and of the npz beside it, if there is one.
        keys: looks up the uids of a file that has img2dataset's keys instead.
    """

    fs: Any
    path: str
    num_rows: int
    types: dict[str, pa.DataType]
    versions: Mapping[str, Version] = field(default_factory=dict)
    keys: UidLookup | None = None

    @property
    def npz(self) -> str:
        """The path of the embeddings beside the file, if there are any."""
        listed = (path for path in self.versions if has_ending(path, ".npz"))
        return next(listed, _stem(self.path) + ".npz")

    def version(self) -> Version:
        """Return the version of the parquet file when it was opened."""
        return self.versions[self.path]

    def batches(self, column: str) -> Iterator[pa.Array]:
        """Read a column in batches of at most 262,144 rows.

        Raises:
            InputError: the file is damaged.
        """
        for rows in self.rows((column,)):
            yield rows.column(0)

    def rows_with_uids(
        self, columns: Sequence[str] = ()
    ) -> Iterator[tuple[NDArray[np.void], pa.RecordBatch]]:
        """Read uids, as a `u8,u8` array, and columns in batches of at most 262,144 rows.

        Raises:
            InputError: a value is no uid or an unknown key, or the file is damaged.
        """
        row, uid_column = 0, "uid" if self.keys is None else KEY
        uids_of = decode_uids if self.keys is None else self.keys.uids_of
        for batch in self.rows((uid_column, *columns)):
            try:
                uids = uids_of(batch.column(0))
            except InvalidUid as error:
                fault = error.fault
                if self.keys is not None:
                    fault = (
                        f"has key {error.value!r}, which no table beside the tars of "
                        f"{self.keys.name} has: give the tars of the download that was scored"
                    )
                raise InputError(f"{self.path} row {row + error.row} {fault}") from None
            yield uids, batch
            row += len(batch)

    def pool_rows(
        self, columns: Sequence[str] = ()
    ) -> Iterator[tuple[NDArray[np.void], pa.RecordBatch, NDArray[np.bool_] | None]]:
        """Read uids and columns as `rows_with_uids` does, with a mask of the rows in the pool.

        Rows of img2dataset's tables whose download failed are not in the pool. A mask of None
        keeps all rows.

        Raises:
            InputError: see `rows_with_uids`; or the column `status` does not hold text.
        """
        status = (STATUS,) if STATUS in self.types else ()
        self._check_status()
        for uids, batch in self.rows_with_uids((*columns, *status)):
            downloaded = succeeded(batch.column(batch.num_columns - 1)) if status else None
            yield uids, batch, downloaded

    def rows_in_pool(self) -> NDArray[np.bool_] | None:
        """Return a mask [num_rows] of the rows that are in the pool; None keeps all."""
        self._check_status()
        if STATUS not in self.types:
            return None
        parts = [succeeded(batch) for batch in self.batches(STATUS)]
        return np.concatenate([np.empty(0, np.bool_), *parts])

    def _check_status(self) -> None:
        for name, kind in self.types.items():
            if name.casefold() != STATUS or (name == STATUS and is_text(kind)):
                continue
            raise InputError(
                f"{self.path} has a column {name!r} of type {kind}: img2dataset's text column "
                f"{STATUS!r} says {SUCCESS!r} where an image was downloaded, so name it like that, "
                "or take out a column that means something else"
            )

    def rows(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read some columns in batches of at most 262,144 rows.

        Raises:
            InputError: the file is damaged, or has a column not at all or twice.
        """
        row = 0
        with readable(self.path, *_PARQUET), _open(self.fs, self.path, self.version()) as file:
            for column in columns:
                if (times := file.schema_arrow.names.count(column)) > 1:
                    raise InputError(f"{self.path} has column {column!r} twice: take one out")
                if not times:
                    raise InputError(f"{self.path} has no column {column!r}: add it")
            for batch in file.iter_batches(_BATCH, columns=list(columns), use_threads=False):
                arrays = [batch.column(batch.schema.get_field_index(column)) for column in columns]
                row += batch.num_rows
                if row > self.num_rows:  # callers have arrays of num_rows rows
                    break
                yield pa.RecordBatch.from_arrays(arrays, list(columns))
            if row != self.num_rows:
                raise InputError(
                    f"{self.path} has another number of rows than the {self.num_rows:,} that it "
                    "says: download or write it again"
                )


def succeeded(status: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return whether img2dataset downloaded the image of each row [n]; a null counts as a failure.

    Raises:
        TypeError: the column does not hold text.
    """
    if not is_text(status.type):
        raise TypeError(f"{STATUS} of type {status.type}")
    import pyarrow.compute as pc  # only img2dataset's tables need it

    plain = plain_column(pa.chunked_array([status]) if isinstance(status, pa.Array) else status)
    same = pc.fill_null(pc.equal(plain.cast(pa.large_string()), SUCCESS), False)
    return np.asarray(same, np.bool_)


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are text."""
    kinds = ("string", "large_string", "string_view")
    return any(is_kind(name, value_type(kind)) for name in kinds)


def open_shards(
    directory: str,
    flag: str,
    num_workers: int,
    recursive: bool = False,
    keys: UidLookup | None = None,
) -> list[ParquetShard]:
    """Open the parquet files of a folder, sorted by name, each with a `uid` column.

    Args:
        directory: a local or cloud path, as fsspec spells them.
        flag: the flag that named the folder, for messages.
        num_workers: the number of threads.
        recursive: also open the files of sub-folders.
        keys: looks up the uids of files that have a column `key` and no `uid`.

    Raises:
        InputError: there is no such folder or no parquet file in it, or a file is damaged or has
            no `uid`.
    """
    endings, needed = (".parquet", ".npz"), (".parquet",)
    folder = list_folder(directory, flag, endings, recursive, needed)
    paths = [path for path in folder.versions if has_ending(path, needed)]
    shards = map_threads(
        lambda path: _describe(folder.fs, path, folder.versions, keys), paths, num_workers
    )
    if keys is not None and any(shard.keys is keys for shard in shards):
        keys.read()
    return shards


def open_shard(fs: Any, path: str) -> ParquetShard:
    """Open a parquet file with a `uid` column.

    Raises:
        InputError: the file does not exist, is damaged, or has no `uid`.
    """
    with readable(path, *_PARQUET):
        version = version_of(fs, path)
    return _describe(fs, path, {path: version})


def check_shards(shards: Iterable[ParquetShard]) -> None:
    """Raise InputError if parquet files have changed since they were opened.

    Callers check before they save a result, since a pool may change while it is read. npz files
    are checked by `iter_embeddings`.
    """
    versions: dict[int, dict[str, Version]] = {}
    filesystems: dict[int, Any] = {}
    for shard in shards:
        filesystems[id(shard.fs)] = shard.fs
        versions.setdefault(id(shard.fs), {})[shard.path] = shard.version()
    for key, fs in filesystems.items():
        check_unchanged(fs, versions[key])


def open_file_or_folder(path: str, flag: str, num_workers: int) -> list[ParquetShard]:
    """Open one parquet file with a `uid` column, or those of a folder: see `open_shards`."""
    try:
        fs, root = resolve_path(path)
        if is_folder(fs, root) or not has_ending(path, ".parquet"):
            return open_shards(path, flag, num_workers, recursive=True)
        if not fs.exists(root):
            raise InputError(
                f"{flag} {path} is not there: give a .parquet file, or a folder of them"
            )
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{flag} {path} cannot be opened ({first_line(error)})") from None
    return [open_shard(fs, root)]


def _describe(
    fs: Any, path: str, versions: Mapping[str, Version], keys: UidLookup | None = None
) -> ParquetShard:
    with readable(path, *_PARQUET), _open(fs, path, versions[path]) as file:
        schema = file.schema_arrow
        types = dict(zip(schema.names, schema.types, strict=True))
        keys = None if "uid" in types or KEY not in types else keys
        if keys is not None and not is_text(types[KEY]):
            raise InputError(
                f"{path} has column {KEY!r} of type {types[KEY]}, and img2dataset's keys are text "
                "such as '000000012': write them as strings, zeros in front included"
            )
        if "uid" not in types and keys is None:
            spelled = next((name for name in types if name.casefold() == "uid"), None)
            way_out = f"rename {spelled!r}" if spelled else "write them beside the scores"
            raise InputError(
                f"{path} has no column 'uid' (it has {', '.join(types)}): uids join a score "
                f"to its example, so {way_out}"
                + (", or select with --shards_dir, the tars of these keys" if KEY in types else "")
            )
        num_rows, size = file.metadata.num_rows, versions[path][0]
        if not 0 <= num_rows <= _MOST_ROWS_PER_BYTE * size:
            raise InputError(
                f"{path} says that it has {num_rows:,} rows and has {size:,} bytes: download or "
                "write it again"
            )
        names = (path, _stem(path) + ".npz", _stem(path) + ".NPZ")
        own_versions = {name: versions[name] for name in names if name in versions}
        return ParquetShard(fs, path, num_rows, types, own_versions, keys)


@contextlib.contextmanager
def _open(fs: Any, path: str, version: Version) -> Iterator[pq.ParquetFile]:
    with open_file(fs, path, version) as handle:
        yield open_parquet(handle)


def _stem(path: str) -> str:
    return path[: -len(".parquet")]
