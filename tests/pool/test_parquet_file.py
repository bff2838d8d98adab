"""Parquet files whose Arrow schema has types unknown to this pyarrow."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.pool.folder_hashes import hash_folder
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.parquet_file import open_parquet
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.tars.uids import uids_of_table
from tests.conftest import hex_uids, refusal
from tests.tars.made_downloads import write_shard

UIDS = hex_uids(4)
RAW = [bytes.fromhex(uid) for uid in UIDS]


def of_a_newer_pyarrow(path: Path) -> None:
    """Replace the Arrow schema by one that this pyarrow does not know."""
    content = bytearray(path.read_bytes())
    start = content.index(b"ARROW:schema") + len(b"ARROW:schema") + 8
    content[start : start + 64] = b"A" * 64
    path.write_bytes(content)
    with pytest.raises((pa.ArrowException, OSError)):
        _ = pq.ParquetFile(path).schema_arrow


COLUMNS: dict[str, pa.Array] = {
    "string": pa.array(UIDS),
    "large_string": pa.array(UIDS, pa.large_string()),
    "dictionary": pa.array(UIDS).dictionary_encode(),
    "16 bytes": pa.array(RAW, pa.binary()),
    "fixed_size_binary[16]": pa.array(RAW, pa.binary(16)),
    "characters as binary": pa.array([uid.encode() for uid in UIDS]),
}
if hasattr(pa, "string_view"):
    COLUMNS["string_view"] = pa.array(UIDS, pa.string_view())
    COLUMNS["binary_view"] = pa.array(RAW, pa.binary_view())
if hasattr(pa, "uuid"):
    COLUMNS["uuid"] = pa.array(RAW, pa.uuid())


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS.keys())
def test_uids(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"uid": column, "s": pa.array([Decimal("0.25")] * 4)})
    pq.write_table(table, tmp_path / "a.parquet")
    wanted = read_pool(str(tmp_path), 1, progress=False).uids.tobytes()
    of_a_newer_pyarrow(tmp_path / "a.parquet")
    assert read_pool(str(tmp_path), 1, progress=False).uids.tobytes() == wanted
    (shard,) = open_shards(str(tmp_path), "--scores_dir", 1)
    assert [batch.to_pylist() for batch in shard.batches("s")] == [[Decimal("0.25")] * 4]


def test_the_table_beside_a_tar(tmp_path: Path) -> None:
    tar = write_shard(tmp_path, 0, UIDS, [True, False, True, True])
    of_a_newer_pyarrow(tar.with_suffix(".parquet"))
    found = uids_of_table(str(tar))
    assert found is not None
    assert (len(found.uids), found.failed) == (3, 1)


def test_a_manifest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": UIDS}), tmp_path / "a.parquet")
    of_a_newer_pyarrow(tmp_path / "a.parquet")
    found = hash_folder(str(tmp_path), "FOLDER", tmp_path / "journal", 1)
    assert [file.rows for file in found.values()] == [4]


def cut(content: bytes) -> bytes:
    return content[:-9]


def long_footer(content: bytes) -> bytes:
    return content[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1"


def no_footer(content: bytes) -> bytes:
    return b"PAR1" + bytes(8) + b"PAR1"


@pytest.mark.parametrize("spoil", [cut, long_footer, no_footer])
def test_damaged_files_stay_damaged(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"uid": UIDS}), path)
    path.write_bytes(spoil(path.read_bytes()))
    with path.open("rb") as file, pytest.raises((pa.ArrowException, OSError)):
        open_parquet(file)
    said = refusal(open_shards, str(tmp_path), "--metadata_dir", 1)
    assert f"{path} cannot be read as parquet" in said
