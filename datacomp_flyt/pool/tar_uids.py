"""Which uids a tar shard holds: of img2dataset's table beside it, or of its samples."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datacomp_flyt.pool.tar_samples import Skip, UnreadableShard, read_tar, stored_uid


def uids_of_tar(tar: str) -> tuple[list[str], bool, str | None]:
    """uids in a tar; whether it was opened for that; and what was wrong."""
    table = os.path.splitext(tar)[0] + ".parquet"
    if os.path.isfile(table):
        try:
            columns = pq.ParquetFile(table).schema_arrow.names
            if "uid" in columns:
                rows = pq.read_table(table, columns=[c for c in ("uid", "status") if c in columns])
                if "status" in columns:  # img2dataset also lists what it could not download
                    rows = rows.filter(pc.equal(rows["status"], "success"))
                return rows["uid"].drop_null().to_pylist(), False, None
        except (pa.ArrowException, OSError):
            pass  # the tar itself says the same
    uids: list[str] = []
    try:
        for sample in read_tar(tar):
            try:
                uids.append(stored_uid(sample))
            except Skip:
                continue
    except UnreadableShard as error:
        return uids, True, str(error)
    return uids, True, None
