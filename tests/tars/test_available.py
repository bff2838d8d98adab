"""Lists of available images, and pools of which rows are left out."""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.pool.available import Available, read_available
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.uids import UID_DTYPE
from tests.conftest import hex_uids, make_pool, refusal, sorted_uids, take, write_files
from tests.tars.made_downloads import FAILED

POOL = make_pool()
METADATA = POOL.metadata


def pairs(high: object, low: object) -> np.ndarray:
    uids = np.empty(len(low), UID_DTYPE)  # type: ignore[arg-type]
    uids["f0"], uids["f1"] = high, low
    return uids


def numbers(seed: int, size: int, most: int) -> np.ndarray:
    """Draw uids of small numbers, which are no hashes."""
    rng = np.random.default_rng(seed)
    return np.unique(pairs(rng.integers(0, most, size), rng.integers(0, most, size)))


LISTS = {
    "hashes": sorted_uids(hex_uids(3000)),
    "one": sorted_uids(hex_uids(1)),
    "zero": pairs([0], [0]),
    "greatest": pairs([2**64 - 1] * 2, [2**64 - 2, 2**64 - 1]),
    "small numbers": numbers(0, 500, 40),
    "one first half": pairs([7] * 900, np.arange(900)),
    "ends of heaps": pairs(np.arange(1, 900, dtype=np.uint64) << np.uint64(48), [0] * 899),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", LISTS)
def test_a_list_contains_what_is_in_it(tmp_path: Path, name: str, mapped: bool) -> None:
    uids = LISTS[name]
    available = Available("--available F", uids)
    if mapped:
        np.save(tmp_path / "a.npy", uids)
        available = pickle.loads(pickle.dumps(read_available(str(tmp_path / "a.npy"))))
        assert isinstance(available.uids, np.memmap)
    shifted = pairs(uids["f0"], uids["f1"] + np.uint64(1))
    asked = np.concatenate([uids, shifted, *LISTS.values(), sorted_uids(hex_uids(200, "others"))])
    asked = np.random.default_rng(1).permutation(asked)
    wanted = np.isin(asked, uids)
    assert available.contains(asked).tolist() == wanted.tolist()
    assert available.contains(asked[:0]).tolist() == []
    assert wanted.any()
    assert not wanted.all()


def test_a_list_in_memory_goes_to_another_process_whole(tmp_path: Path) -> None:
    available = Available("--shards_dir T", LISTS["hashes"])
    there = pickle.loads(pickle.dumps(available))
    assert there.contains(LISTS["hashes"][:5]).all()
    filed = available.in_file(tmp_path / "a.npy")
    assert filed.name == available.name
    assert filed.in_file(tmp_path / "b.npy") is filed
    assert len(pickle.dumps(filed)) < 1000
    assert pickle.loads(pickle.dumps(filed)).contains(LISTS["hashes"]).all()


def array_of_objects(path: Path) -> None:
    np.save(path, np.array([{}, None]), allow_pickle=True)


def archive(path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, uids=LISTS["hashes"])
    path.write_bytes(file.getvalue())


def cut_short(path: Path) -> None:
    np.save(path, LISTS["hashes"])
    os.truncate(path, 1000)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (Path.mkdir, "is no file"),
        (os.mkfifo, "is no file"),
        (Path.touch, "cannot be read as .npy"),
        (array_of_objects, "cannot be read as .npy"),
        (archive, "cannot be read as .npy"),
        (cut_short, "cannot be read as .npy"),
        (lambda path: np.save(path, LISTS["one"][:0]), "names no image"),
        (lambda path: np.save(path, LISTS["hashes"].view("u8")), "holds uint64"),
        (lambda path: np.save(path, LISTS["hashes"].astype("i8,i8")), "holds [('f0', '<i8')"),
        (lambda path: np.save(path, LISTS["hashes"][::-1]), "entry 1 is below"),
        (lambda path: np.save(path, np.repeat(LISTS["one"], 2)), "more than once"),
    ],
)
def test_no_list(tmp_path: Path, make: Any, named: str) -> None:
    path = tmp_path / "list.npy"
    make(path)
    said = refusal(read_available, str(path))
    assert named in said
    assert str(path) in said
    assert "datacomp-flyt available" in said


def test_a_list_far_away() -> None:
    assert "cloud path" in refusal(read_available, "s3://bucket/list.npy")


def test_faults_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datacomp_flyt.pool.available._BLOCK", 4)
    uids = LISTS["hashes"][:13]
    for row in range(1, 13):
        wrong = uids.copy()
        wrong[row] = uids[row - 1]
        np.save(tmp_path / "a.npy", wrong)
        assert "more than once" in refusal(read_available, str(tmp_path / "a.npy"))
        wrong = uids.copy()
        wrong[row:] = uids[row - 1 : -1] if row > 1 else uids[:-1]
        wrong[row - 1] = uids[-1]
        np.save(tmp_path / "a.npy", wrong)
        assert f"entry {row} is below" in refusal(read_available, str(tmp_path / "a.npy"))


def test_a_list_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, LISTS["hashes"])
    available = read_available(str(path))
    available.check_unchanged()
    packed = pickle.dumps(available)
    np.save(path, LISTS["one"])
    assert "has changed" in refusal(available.check_unchanged)
    assert "has changed" in refusal(pickle.loads, packed)


# ------------------------------------------------------------------ rows that are left out


OTHERS = sorted_uids(hex_uids(9, "others"))
THERE = np.random.default_rng(4).random(len(POOL.uids)) > 0.3
STATUS = ["success" if ok else FAILED[row % 3] for row, ok in enumerate(THERE)]


def check_pool(folder: str, available: Available | None, num_workers: int) -> str:
    """Read the pool of the available rows; return the message on the others."""
    pool = read_pool(folder, num_workers, available=available)
    there = {uid for uid, ok in zip(POOL.uids, THERE, strict=True) if ok}
    assert pool.uids.tobytes() == sorted_uids(sorted(there)).tobytes()
    assert pool.num_listed == len(POOL.uids)
    for shard, positions in zip(pool.shards, pool.positions, strict=True):
        uids = [uid for uids, _ in shard.rows_with_uids() for uid in uids.tolist()]
        assert len(positions) == len(uids) == shard.num_rows
        for uid, position in zip(uids, positions.tolist(), strict=True):
            assert (position >= 0) == (f"{uid[0]:016x}{uid[1]:016x}" in there)
            assert position < 0 or pool.uids[position].tolist() == uid
    return folder


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("parts", [1, 3, 40])
@pytest.mark.parametrize("kind", ["list", "status", "both"])
def test_rows_that_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, parts: int, num_workers: int
) -> None:
    metadata = METADATA if kind == "list" else {**METADATA, "status": STATUS}
    folder = write_files(tmp_path / "metadata", metadata, parts, seed=parts)
    at_hand = [uid for uid, ok in zip(POOL.uids, THERE, strict=True) if ok]
    np.save(tmp_path / "a.npy", sorted_uids([*at_hand, *hex_uids(9, "others")]))
    available = None if kind == "status" else read_available(str(tmp_path / "a.npy"))
    check_pool(folder, available, num_workers)
    said = capsys.readouterr().out
    gone = np.count_nonzero(~THERE)
    assert said.startswith(
        f"leaving out {gone} of {len(POOL.uids)} rows of --metadata_dir {folder}"
    )
    assert ("'status' other than 'success'" in said) == (kind != "list")
    assert ("have no image in --available" in said) == (kind != "status")


TEXTS = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
if hasattr(pa, "string_view"):
    TEXTS.append(pa.string_view())


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_a_status_of_any_text(tmp_path: Path, kind: pa.DataType) -> None:
    status = pa.array(STATUS, pa.string())
    try:
        status = status.cast(kind)
    except pa.ArrowNotImplementedError:
        status = pa.array(STATUS, kind)
    table = pa.table({"uid": POOL.uids, "status": status})
    pq.write_table(table[:50], tmp_path / "a.parquet")
    pq.write_table(table[50:], tmp_path / "b.parquet")
    (shard, _) = open_shards(str(tmp_path), "--metadata_dir", 1)
    assert str(shard.types["status"]).split("<")[0] == str(kind).split("<")[0]
    check_pool(str(tmp_path), None, 1)


def test_all_rows_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_files(tmp_path / "m", {**METADATA, "status": ["success"] * len(POOL.uids)}, 2)
    assert len(read_pool(folder, 1, available=Available("L", sorted_uids(POOL.uids)))) == 120
    assert capsys.readouterr().out == ""


def test_some_files_have_a_status(tmp_path: Path) -> None:
    """DataComp's metadata and img2dataset's tables lie in one folder."""
    write_files(tmp_path, take({**METADATA, "status": STATUS}, list(range(60))), 1)
    (tmp_path / "part-00000.parquet").rename(tmp_path / "first.parquet")
    write_files(tmp_path, take(METADATA, list(range(60, 120))), 1)
    assert len(read_pool(str(tmp_path), 1)) == 60 + np.count_nonzero(THERE[:60])


def test_a_uid_whose_first_download_failed(tmp_path: Path) -> None:
    columns = {"uid": [*POOL.uids, *POOL.uids], "status": ["failed"] * 60 + ["success"] * 180}
    folder = write_files(tmp_path / "m", take(columns, list(range(180))), 3)
    assert len(read_pool(folder, 1)) == 120
    said = refusal(read_pool, write_files(tmp_path / "n", columns, 3), 1)
    assert POOL.uids[0] not in said  # of the rows that are there, it is one
    twice = POOL.uids[60:]
    assert any(uid in said for uid in twice)
    rows = [int(row) for row in re.findall(r"row (\d+)", said)]
    assert len(rows) == 2
    assert max(rows) < 80


@pytest.mark.parametrize("available", [None, Available("L", OTHERS)])
def test_an_empty_file_among_others(tmp_path: Path, available: Available | None) -> None:
    write_files(tmp_path, {**METADATA, "status": STATUS}, 2)
    schema = pa.schema([("uid", pa.string()), ("status", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    if available is None:
        assert len(read_pool(str(tmp_path), 1)) == np.count_nonzero(THERE)
    else:
        said = refusal(read_pool, str(tmp_path), 1, available=available)
        assert "all of its 120 rows" in said


def test_rows_in_pool_of_a_cloud_folder(memory_folder: str) -> None:
    write_files(memory_folder, {**METADATA, "status": STATUS})
    (shard,) = open_shards(memory_folder, "--metadata_dir", 1)
    assert shard.rows_in_pool().tolist() == THERE.tolist()  # type: ignore[union-attr]
