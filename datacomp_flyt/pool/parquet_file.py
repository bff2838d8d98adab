"""Opens parquet files, also those that a newer pyarrow wrote."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_ARROW_SCHEMA = b"ARROW:schema"
_MAGIC = b"PAR1"


def open_parquet(handle: Any) -> pq.ParquetFile:
    """Open a parquet file, even if its Arrow schema has types that this pyarrow does not know.

    The footer may contain an Arrow schema: pyarrow 7 refuses a file with a `string_view` in it.
    Without the schema, the column has the type that parquet stores, a string.

    Raises:
        Exception: of many types; the file cannot be read.
    """
    try:
        file = pq.ParquetFile(handle)
        _ = file.schema_arrow
    except (pa.ArrowException, OSError):
        metadata = _metadata_without_arrow_schema(handle)
        if metadata is None:
            raise
        return pq.ParquetFile(handle, metadata=metadata)
    return file


def _metadata_without_arrow_schema(handle: Any) -> pq.FileMetaData | None:
    """Read the metadata of a file without the Arrow schema; None if the file has no schema."""
    end = handle.seek(0, os.SEEK_END)
    if end < 12:
        return None
    handle.seek(end - 8)
    tail = handle.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > end - 12:
        return None
    handle.seek(end - 8 - length)
    footer = handle.read(length)
    if _ARROW_SCHEMA not in footer:
        return None
    footer = footer.replace(_ARROW_SCHEMA, _ARROW_SCHEMA.lower())
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer + tail))
