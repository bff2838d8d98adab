"""A pool has the same uids whatever its files, and invalid pools are refused."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from datacomp_flyt.pool.parquet import check_shards, open_file_or_folder, open_shards
from datacomp_flyt.pool.pool import Pool, read_pool
from tests.conftest import (
    ROWS,
    make_pool,
    refusal,
    sorted_uids,
    take,
    write_files,
    write_parquet,
)

METADATA = make_pool().metadata
UIDS = METADATA["uid"]


def read(folder: Path | str, num_workers: int = 1) -> Pool:
    return read_pool(str(folder), num_workers, progress=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pool of three files a, b, c with 40 rows each."""
    for start, name in enumerate("abc"):
        rows = range(start, ROWS, 3)
        write_parquet(tmp_path / f"{name}.parquet", take(METADATA, list(rows)))
    return tmp_path


# ------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_any_files_give_the_same_pool(tmp_path: Path, parts: int, num_workers: int) -> None:
    pool = read(write_files(tmp_path, METADATA, parts, seed=parts), num_workers)
    assert pool.uids.tobytes() == sorted_uids(UIDS).tobytes()
    assert len(pool) == ROWS
    assert len(pool.shards) == parts
    assert sum(shard.num_rows for shard in pool.shards) == ROWS


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_cloud_folder_gives_the_pool_of_a_local_one(
    tmp_path: Path, memory_folder: str, num_workers: int
) -> None:
    local = read(write_files(tmp_path, METADATA, 3), num_workers)
    write_files(memory_folder, METADATA, 3)
    with fsspec.open(f"{memory_folder}/part-00001.npz", "wb") as file:
        np.savez(file, l14_img=np.zeros((40, 2)))
    cloud = read(memory_folder, num_workers)
    assert cloud.uids.tobytes() == local.uids.tobytes()
    names = [[shard.path.split("/")[-1] for shard in pool.shards] for pool in (local, cloud)]
    assert names[0] == names[1]
    assert [s.types for s in cloud.shards] == [s.types for s in local.shards]


def test_a_cloud_npz_is_checked_too(memory_folder: str) -> None:
    write_files(memory_folder, METADATA)
    with fsspec.open(f"{memory_folder}/part-00000.npz", "wb") as file:
        np.savez(file, l14_img=np.zeros((41, 2)))
    assert "41" in refusal(read, memory_folder)


def test_columns_come_whole_and_in_order_from_several_row_groups(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", METADATA, row_group_size=7)
    (shard,) = open_shards(str(tmp_path), "--scores_dir", 1)
    assert shard.path == path
    values = np.concatenate([b.to_numpy() for b in shard.batches("clip_l14_similarity_score")])
    assert np.array_equal(values, METADATA["clip_l14_similarity_score"])
    assert read(tmp_path).uids.tobytes() == sorted_uids(UIDS).tobytes()


@pytest.mark.parametrize("columns", [("uid",), ("clip_l14_similarity_score", "uid", "text")])
def test_rows_have_the_columns_in_the_order_asked_for(
    tmp_path: Path, columns: tuple[str, ...]
) -> None:
    write_parquet(tmp_path / "a.parquet", METADATA, row_group_size=7)
    (shard,) = open_shards(str(tmp_path), "--scores_dir", 1)
    batches = list(shard.rows(columns))
    assert all(batch.schema.names == list(columns) for batch in batches)
    for number, name in enumerate(columns):
        found = [value for batch in batches for value in batch.column(number).to_pylist()]
        assert found == list(METADATA[name])


def test_the_version_of_a_file(tmp_path: Path, memory_folder: str) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", METADATA))
    (shard,) = open_shards(str(tmp_path), "--scores_dir", 1)
    assert shard.version()[0] == path.stat().st_size
    os.utime(path, (1, 1))
    (again,) = open_shards(str(tmp_path), "--scores_dir", 1)
    assert shard.version() != again.version()
    (cloud,) = open_shards(write_files(memory_folder, METADATA), "--scores_dir", 1)
    assert cloud.version()[0] == cloud.fs.size(cloud.path)


def test_shards_that_change_are_refused(tmp_path: Path, memory_folder: str) -> None:
    for folder in (str(tmp_path), memory_folder):
        write_files(folder, METADATA, parts=2)
        shards = open_shards(folder, "--metadata_dir", 1)
        check_shards(shards)
        for name in ("part-00000.parquet", "part-00001.parquet"):
            fs, path = fsspec.core.url_to_fs(f"{folder}/{name}")
            content = fs.cat_file(path)
            fs.pipe_file(path, content)  # the same bytes at another time
            if Path(path).exists():  # whose clock may not have ticked
                os.utime(path, (1, 1))
            assert f"{name} has changed since this run began" in refusal(check_shards, shards)
            fs.rm(path)
            assert f"{name} was there when this run began" in refusal(check_shards, shards)
            fs.pipe_file(path, content)
            shards = open_shards(folder, "--metadata_dir", 1)
    (alone,) = open_file_or_folder(f"{tmp_path}/part-00000.parquet", "--weights", 1)
    os.utime(f"{tmp_path}/part-00000.parquet", (1, 1))
    assert "part-00000.parquet has changed" in refusal(check_shards, [alone])


def test_no_more_is_asked_of_a_cloud_than_its_listing(
    memory_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(memory_folder, METADATA, parts=2)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "size", None)
    assert len(open_shards(memory_folder, "--metadata_dir", 1)) == 2


def test_sub_folders_are_read_only_where_asked(folder: Path) -> None:
    write_files(folder / "below", METADATA)
    assert len(read(folder)) == ROWS
    (folder / "notes.txt").write_text("not a parquet file")
    names = [s.path for s in open_shards(str(folder), "--scores_dir", 1, recursive=True)]
    assert [name.removeprefix(str(folder)) for name in names] == [
        "/a.parquet",
        "/b.parquet",
        "/below/part-00000.parquet",
        "/c.parquet",
    ]


def test_empty_files_among_others_do_no_harm(folder: Path) -> None:
    write_parquet(folder / "0.parquet", {"uid": pa.array([], pa.string())})
    write_parquet(folder / "bb.parquet", {"uid": pa.array([], pa.string())})
    assert read(folder).uids.tobytes() == sorted_uids(UIDS).tobytes()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_uids_of_any_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(UIDS)
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    write_parquet(tmp_path / "a.parquet", {"uid": column})
    assert read(tmp_path).uids.tobytes() == sorted_uids(UIDS).tobytes()


def test_upper_case_uids_are_the_same_examples(folder: Path) -> None:
    upper = {"uid": [uid.upper() for uid in UIDS[::3]]}
    write_parquet(folder / "a.parquet", upper)
    assert read(folder).uids.tobytes() == sorted_uids(UIDS).tobytes()


# ---------------------------------------------------------------------- what is refused


def test_a_missing_folder(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert f"--metadata_dir {missing}" in refusal(read, missing)


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    assert "not a folder" in refusal(read, folder / "a.parquet")


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/pool", "memory://no/such/folder"])
def test_a_cloud_folder_that_is_not_there(url: str) -> None:
    assert url in refusal(read, url)


def test_a_folder_without_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("uid\n")
    assert f"--metadata_dir {tmp_path} holds no .parquet file" in refusal(read, tmp_path)


def test_a_parquet_without_uid(folder: Path) -> None:
    write_parquet(folder / "b.parquet", {"UID": UIDS, "text": UIDS})
    message = refusal(read, folder)
    assert f"{folder / 'b.parquet'} has no column 'uid'" in message
    assert "UID, text" in message


@pytest.mark.parametrize("wrong", ["f" * 31, "f" * 33, "F" * 31 + "g", "", None])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_value_that_is_no_uid(folder: Path, wrong: str | None, num_workers: int) -> None:
    uids = [*UIDS[1::3][:17], wrong, *UIDS[1::3][18:]]
    write_parquet(folder / "b.parquet", {"uid": uids}, row_group_size=5)
    message = refusal(read, folder, num_workers)
    assert f"{folder / 'b.parquet'} row 17 has uid {wrong!r}" in message


def test_a_bad_uid_beyond_the_first_batch_has_its_own_row(tmp_path: Path) -> None:
    number = (1 << 17) + 50
    uids = [f"{row:032x}" for row in range(number)]
    uids[number - 3] = "no uid"
    write_parquet(tmp_path / "a.parquet", {"uid": uids})
    assert f"row {number - 3} has uid 'no uid'" in refusal(read, tmp_path)


def test_uids_that_are_numbers(folder: Path) -> None:
    write_parquet(folder / "b.parquet", {"uid": [12, 13]})
    assert f"{folder / 'b.parquet'} row 0 has uid 12" in refusal(read, folder)


def test_a_uid_twice_in_one_file(folder: Path) -> None:
    rows = [*range(1, ROWS, 3), 7]
    write_parquet(folder / "b.parquet", take(METADATA, rows))
    message = refusal(read, folder)
    assert UIDS[7] in message
    assert f"({folder / 'b.parquet'} row 2 and {folder / 'b.parquet'} row 40" in message


@pytest.mark.parametrize("upper", [False, True])
def test_a_uid_in_two_files(folder: Path, upper: bool) -> None:
    again = UIDS[5].upper() if upper else UIDS[5]  # row 1 of c
    write_parquet(folder / "d.parquet", {"uid": ["0" * 32, "1" * 32, again]})
    message = refusal(read, folder)
    assert UIDS[5] in message
    assert f"({folder / 'c.parquet'} row 1 and {folder / 'd.parquet'} row 2" in message


def test_all_doubled_uids_are_counted(folder: Path) -> None:
    write_parquet(folder / "d.parquet", take(METADATA, [4, 9, 100]))
    assert "3 such pairs" in refusal(read, folder)


def test_uids_that_share_one_half_are_different(tmp_path: Path) -> None:
    uids = ["0" * 16 + "1" * 16, "0" * 32, "1" * 32, "1" * 16 + "0" * 16]
    write_parquet(tmp_path / "a.parquet", {"uid": uids})
    assert read(tmp_path).uids.tolist() == sorted_uids(uids).tolist()


def test_a_pool_without_rows(tmp_path: Path) -> None:
    for name in "ab":
        write_parquet(tmp_path / f"{name}.parquet", {"uid": pa.array([], pa.string())})
    assert "no example" in refusal(read, tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 12, 400, -200, -9, -4, -1])
def test_a_truncated_parquet(folder: Path, kept: int) -> None:
    path = folder / "b.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in refusal(read, folder)


def test_a_parquet_whose_pages_are_overwritten(folder: Path) -> None:
    path = folder / "b.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 600 + content[604:])
    assert str(path) in refusal(read, folder)


def test_a_truncated_cloud_parquet(memory_folder: str) -> None:
    write_files(memory_folder, METADATA, 2)
    url = f"{memory_folder}/part-00001.parquet"
    content = fsspec.open(url).open().read()
    with fsspec.open(url, "wb") as file:
        file.write(content[:-50])
    assert "part-00001.parquet" in refusal(read, memory_folder)


# ---------------------------------------------------------------------------------- npz


def npz(save: Callable[..., None] = np.savez, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_as_many_rows_is_taken(folder: Path, save: Callable[..., None]) -> None:
    rows = np.zeros((40, 3), np.float16)
    (folder / "b.npz").write_bytes(npz(save, b32_img=rows, l14_txt=rows[:, 0]))
    assert len(read(folder)) == ROWS


@pytest.mark.parametrize(
    ("shape", "said"), [((39, 3), "39"), ((41,), "41"), ((3, 40), "3"), ((0, 3), "0"), ((), "no")]
)
def test_npz_of_other_length(folder: Path, shape: tuple[int, ...], said: str) -> None:
    good, wrong = np.zeros((40, 3)), np.zeros(shape)
    (folder / "b.npz").write_bytes(npz(a_good=good, l14_img=wrong))
    message = refusal(read, folder)
    assert f"{folder / 'b.npz'} has {said} rows in array 'l14_img'" in message
    assert f"{folder / 'b.parquet'} has 40" in message


def zip_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


GOOD_NPZ = npz(np.savez_compressed, l14_img=np.arange(4000.0).reshape(40, 100))
DATA_START = GOOD_NPZ.index(b"l14_img.npy") + len(b"l14_img.npy")
EMPTY_HEADER = b"\x93NUMPY\x01\x00"
DAMAGED_NPZ = {
    "empty": b"",
    "text": b"not a zip file",
    "truncated": GOOD_NPZ[:-30],
    "first half": GOOD_NPZ[: len(GOOD_NPZ) // 2],
    "last half": GOOD_NPZ[len(GOOD_NPZ) // 2 :],
    "no npy inside": zip_of("l14_img.npy", b"plain text"),
    "empty member": zip_of("l14_img.npy", b""),
    "header cut short": zip_of("l14_img.npy", EMPTY_HEADER + b"\x76\x00{'descr': "),
    "header open": zip_of("l14_img.npy", EMPTY_HEADER + b"\x05\x00{(((\n"),
    "header no dict": zip_of("l14_img.npy", EMPTY_HEADER + b"\x02\x0012"),
    "unknown version": zip_of("l14_img.npy", b"\x93NUMPY\x09\x00\x02\x0012"),
    "deflated data": GOOD_NPZ[:DATA_START] + b"\xff" * 60 + GOOD_NPZ[DATA_START + 60 :],
}


@pytest.mark.parametrize("content", DAMAGED_NPZ.values(), ids=DAMAGED_NPZ.keys())
def test_a_damaged_npz(folder: Path, content: bytes) -> None:
    (folder / "b.npz").write_bytes(content)
    assert str(folder / "b.npz") in refusal(read, folder)
