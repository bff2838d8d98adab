"""Which uids a tar shard holds: of img2dataset's table beside it, or of its samples."""

from __future__ import annotations

import os
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datacomp_flyt.pool.arrow_types import plain_column
from datacomp_flyt.pool.nothing_usable import Seen, nothing_usable
from datacomp_flyt.pool.tar_samples import (
    Skip,
    UnreadableShard,
    read_tar,
    stored_image,
    stored_uid,
)
from datacomp_flyt.pool.uids import decode_uids, encode_uids, holds_uids


def _characters(uids: pa.ChunkedArray) -> list[str]:
    """uids as strings; those that are strings as they are, for messages about wrong ones."""
    is_text = pa.types.is_string(uids.type) or pa.types.is_large_string(uids.type)
    strings: list[str] = (uids if is_text else encode_uids(decode_uids(uids))).to_pylist()
    return strings


def uids_of_tar(tar: str) -> tuple[list[str], bool, str | None]:
    """uids in a tar; whether it was opened for that; and what was wrong."""
    table = os.path.splitext(tar)[0] + ".parquet"
    if os.path.isfile(table):
        try:
            schema = pq.ParquetFile(table).schema_arrow
            columns = [name for name in ("uid", "status") if name in schema.names]
            if "uid" in columns and holds_uids(schema.field("uid").type):
                rows = pq.read_table(table, columns=columns)
                column = plain_column(rows["uid"])
                if "status" in columns:  # img2dataset also lists what it could not download
                    column = column.filter(pc.equal(rows["status"], "success"))
                return _characters(column.drop_null()), False, None
        except Exception:  # Arrow raises a dozen kinds of damaged files
            pass  # the tar itself says the same
    uids: list[str] = []
    seen, whole = Seen(), False
    reasons: Counter[str] = Counter()
    try:
        for sample in read_tar(tar, seen):
            try:
                uids.append(stored_uid(sample))
                stored_image(sample)
                whole = True
            except Skip as skip:
                reasons[skip.reason] += 1
    except UnreadableShard as error:
        return uids, True, str(error)
    if seen.members and not whole:
        return [], True, str(nothing_usable("no sample can be used", seen, reasons))
    return uids, True, None
