"""Lists of the images in tar shards: every kind of shard, and resuming."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("webdataset")

import datacomp_flyt
from datacomp_flyt.tars import images as images_module
from datacomp_flyt.tars.image_journal import Journal
from datacomp_flyt.tars.image_list import available_in, write_list
from datacomp_flyt.tars.images import Images, read_images
from datacomp_flyt.tars.shards import list_shards
from datacomp_flyt.tars.uids import TarUids, uids_of_table, uids_of_tar
from tests.conftest import hex_uids, refusal, sorted_uids, write_parquet
from tests.tars.made_downloads import write_download, write_shard, write_tar

UIDS = hex_uids(8)
THERE = [True, False, True, True, False, True, True, False]
AT_HAND = [uid for uid, ok in zip(UIDS, THERE, strict=True) if ok]


def shard(folder: Path, table: bool = True) -> Path:
    return write_shard(folder, 0, UIDS, THERE, table)


def retyped(folder: Path, **kinds: pa.DataType) -> Path:
    """A shard whose table has columns of other types."""
    tar = shard(folder)
    table = pq.read_table(tar.with_suffix(".parquet"))
    for name, kind in kinds.items():
        column = table[name].combine_chunks()
        if pa.types.is_dictionary(kind):
            column = column.dictionary_encode()
        elif kind == pa.bool_():
            column = pa.array([value == "success" for value in column.to_pylist()])
        else:
            column = column.cast(kind)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tar.with_suffix(".parquet"))
    return tar


def with_table(folder: Path, **columns: object) -> Path:
    tar = shard(folder, table=False)
    write_parquet(tar.with_suffix(".parquet"), columns)
    return tar


def damaged_table(folder: Path) -> Path:
    tar = shard(folder)
    os.truncate(tar.with_suffix(".parquet"), 500)
    return tar


def folder_for_a_table(folder: Path) -> Path:
    tar = shard(folder, table=False)
    tar.with_suffix(".parquet").mkdir()
    return tar


def failed_rows(uids: list[str]) -> dict[str, object]:
    return {"uid": uids, "status": ["success"] * len(uids)}


BY_TABLE: dict[str, Callable[[Path], Path]] = {
    "as img2dataset writes it": shard,
    "large_string": lambda f: retyped(f, uid=pa.large_string(), status=pa.large_string()),
    "dictionary": lambda f: retyped(
        f,
        uid=pa.dictionary(pa.int32(), pa.string()),
        status=pa.dictionary(pa.int32(), pa.string()),
    ),
    "16 bytes": lambda f: with_table(
        f,
        uid=pa.array([bytes.fromhex(uid) for uid in AT_HAND], pa.binary(16)),
        status=["success"] * 5,
    ),
    "upper case": lambda f: with_table(f, **failed_rows([uid.upper() for uid in AT_HAND])),
    "null uids": lambda f: with_table(f, uid=[*AT_HAND, None], status=["success"] * 6),
    "other columns": lambda f: with_table(f, a=[1] * 5, **failed_rows(AT_HAND), b=[2.5] * 5),
}
BY_TAR: dict[str, Callable[[Path], Path]] = {
    "no table": lambda f: shard(f, table=False),
    "damaged table": damaged_table,
    "a folder for a table": folder_for_a_table,
    "no uid": lambda f: with_table(f, key=["1"], status=["success"]),
    "uids that are none": lambda f: with_table(f, **failed_rows(["x"] * 5)),
    "no status": lambda f: with_table(f, uid=UIDS),
    "another spelling of status": lambda f: with_table(f, uid=UIDS, Status=["success"] * 8),
    "another download's table": lambda f: with_table(f, **failed_rows(hex_uids(5, "others"))),
    "a table of failures alone": lambda f: with_table(f, uid=UIDS, status=["failed"] * 8),
    "a table without rows": lambda f: with_table(f, **failed_rows([])),
    "status of bool": lambda f: retyped(f, status=pa.bool_()),
    "no parquet": lambda f: with_text(f, "no parquet at all"),
    "empty file": lambda f: with_text(f, ""),
}


def with_text(folder: Path, text: str) -> Path:
    tar = shard(folder, table=False)
    tar.with_suffix(".parquet").write_text(text)
    return tar


@pytest.mark.parametrize("kind", [*BY_TABLE, *BY_TAR])
def test_the_images_of_a_tar(tmp_path: Path, kind: str) -> None:
    tar = (BY_TABLE | BY_TAR)[kind](tmp_path)
    found = uids_of_tar(str(tar))
    assert np.sort(found.uids).tobytes() == sorted_uids(AT_HAND).tobytes()
    assert (found.opened, found.problem) == (kind in BY_TAR, None)
    assert (uids_of_table(str(tar)) is None) == (kind in BY_TAR)


def test_rows_that_failed_are_counted(tmp_path: Path) -> None:
    assert uids_of_tar(str(shard(tmp_path))).failed == 3
    assert uids_of_tar(str(BY_TABLE["null uids"](tmp_path))).unusable == 1


def test_samples_that_cannot_be_used(tmp_path: Path) -> None:
    uids: dict[str, str | None] = dict(zip("abcd", UIDS, strict=False))
    assert uids_of_tar(str(write_tar(tmp_path / "a.tar", uids, image=None))).unusable == 4
    for image in ("png", "webp", "jpeg"):
        assert len(uids_of_tar(str(write_tar(tmp_path / "b.tar", uids, image=image))).uids) == 4
    found = uids_of_tar(str(write_tar(tmp_path / "c.tar", uids | {"b": None, "c": "no uid"})))
    assert (len(found.uids), found.unusable, found.invalid) == (2, 2, "no uid")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9000)


def no_tar(path: Path) -> None:
    path.write_text("text " * 400)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("spoil", [empty, cut_short, no_tar, Path.unlink])
def test_tars_that_cannot_be_read(
    tmp_path: Path, spoil: Callable[[Path], None], table: bool
) -> None:
    """The table of a truncated tar lists missing images."""
    for number in range(2):
        write_shard(tmp_path, number, UIDS[number::2], THERE[number::2], table)
    bad = tmp_path / "00000001.tar"
    spoil(bad)
    images = read_images([str(tmp_path / f"0000000{n}.tar") for n in range(2)], 1)
    assert list(images.unreadable) == [str(bad)]
    said = refusal(images.check_readable, "do so")
    assert f"1 of 2 tars cannot be used, the first is {bad}" in said
    assert said.endswith("or do so")
    number = write_list(tmp_path / "list.npy", images)
    assert 2 <= number < len(AT_HAND)
    assert sum("not to its end" in fact for fact in images.describe()) == 1
    said = refusal(available_in, f"{tmp_path}/{{00000000..00000001}}.tar", "--shards_dir", 1)
    assert str(bad) in said
    assert "--allow_unreadable" in said


def test_an_empty_tar_is_one_of_failed_downloads(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, UIDS, [False] * 8)
    write_shard(tmp_path, 1, UIDS, [False] * 8, table=False)
    images = read_images(list_shards(str(tmp_path), "SHARDS"), 1)
    assert not images.unreadable
    said = refusal(write_list, tmp_path / "list.npy", images)
    assert "none of the 2 tars holds an image" in said
    assert not (tmp_path / "list.npy").exists()
    assert "holds no image" in refusal(available_in, str(tmp_path), "--shards_dir", 1)


def test_a_table_without_its_tar_has_no_image_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        write_shard(tmp_path, number, UIDS[number::2], THERE[number::2])
    (tmp_path / "00000000.tar").unlink()
    available = available_in(str(tmp_path), "--shards_dir", 1)
    wanted = [uid for uid, ok in zip(UIDS[1::2], THERE[1::2], strict=True) if ok]
    assert f"--shards_dir {tmp_path}: 2 examples with an image" in capsys.readouterr().out
    assert available.uids.tobytes() == sorted_uids(wanted).tobytes()


def test_uids_that_are_there_more_than_once(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, UIDS[:4], [True] * 4)
    write_shard(tmp_path, 1, UIDS[2:], [True] * 6, table=False)
    write_tar(tmp_path / "00000002.tar", {"a": UIDS[7], "b": UIDS[7]})
    images = read_images(list_shards(str(tmp_path), "SHARDS"), 1)
    assert write_list(tmp_path / "list.npy", images) == 8
    (fact,) = [fact for fact in images.describe() if "more than once" in fact]
    assert fact.startswith("3 uids are there more than once (the first is ")
    first = min(UIDS[2], UIDS[3], UIDS[7])
    assert first in fact
    names = ("00000001", "00000002") if first == UIDS[7] else ("00000000", "00000001")
    assert all(f"{name}.tar" in fact for name in names)


# ----------------------------------------------------------------------------- the file


def list_of(images: Images, path: Path) -> bytes:
    write_list(path, images)
    return path.read_bytes()


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_bytes_of_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: bool, rows: int
) -> None:
    """The list does not depend on the shards, their order, and the rows merged at once."""
    made = write_download(tmp_path, 60, num_shards=5, tables=tables)
    np.save(tmp_path / "wanted.npy", sorted_uids(made.at_hand))
    shards = list_shards(str(made.shards), "SHARDS")
    for order in (shards, shards[::-1], [*shards, *shards[1:3]]):
        images = read_images(order, 1)
        merged = list(images.merged(rows))
        assert np.concatenate(merged).tobytes() == sorted_uids(made.at_hand).tobytes()
        assert images.num_repeated == 0
    assert list_of(images, tmp_path / "list.npy") == (tmp_path / "wanted.npy").read_bytes()


@pytest.mark.slow
def test_several_workers(tmp_path: Path) -> None:
    """Processes read tars; threads read tables."""
    write_download(tmp_path / "a", 60, 3, tables=False)
    write_download(tmp_path / "b", 60, 3)
    for name in "ab":
        shards = list_shards(str(tmp_path / name / "shards"), "SHARDS")
        one = list_of(read_images(shards, 1), tmp_path / "one.npy")
        assert list_of(read_images(shards, 2), tmp_path / "two.npy") == one


# ----------------------------------------------------------------------- runs that go on


@pytest.fixture
def read_tars(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are read, in order; `stop` among them ends the run."""
    names: list[str] = []

    def read(tar: str) -> TarUids | None:
        if "stop" in names and len(names) > 2:
            raise KeyboardInterrupt
        names.append(Path(tar).stem[-1])
        return uids_of_table(tar)

    monkeypatch.setattr(images_module, "uids_of_table", read)
    return names


def test_a_run_goes_on(tmp_path: Path, read_tars: list[str]) -> None:
    made = write_download(tmp_path, 60, num_shards=5)
    np.save(tmp_path / "wanted.npy", sorted_uids(made.at_hand))
    shards = list_shards(str(made.shards), "SHARDS")
    journal = tmp_path / "journal"
    read_tars.append("stop")
    with pytest.raises(KeyboardInterrupt):
        read_images(shards, 1, Journal(journal))
    assert read_tars == ["stop", "0", "1"]
    read_tars.clear()
    images = read_images(shards, 1, Journal(journal))
    assert read_tars == ["2", "3", "4"]
    assert list_of(images, tmp_path / "l.npy") == (tmp_path / "wanted.npy").read_bytes()
    assert "5 tars" in images.describe()[0]
    read_tars.clear()
    again = read_images(shards, 1, Journal(journal))
    assert not read_tars
    assert list_of(again, tmp_path / "l.npy") == (tmp_path / "wanted.npy").read_bytes()
    assert again.describe() == images.describe()


def test_a_journal_that_was_cut_off(tmp_path: Path, read_tars: list[str]) -> None:
    made = write_download(tmp_path, 60, num_shards=4)
    np.save(tmp_path / "wanted.npy", sorted_uids(made.at_hand))
    shards = list_shards(str(made.shards), "SHARDS")
    journal = tmp_path / "journal"
    read_images(shards, 1, Journal(journal))
    content = journal.read_bytes()
    for length in (0, 5, 32, 40, 700, len(content) - 16, len(content) - 1, len(content)):
        journal.write_bytes(content[:length])
        images = read_images(shards, 1, Journal(journal))
        assert list_of(images, tmp_path / "l.npy") == (tmp_path / "wanted.npy").read_bytes()
    read_tars.clear()
    spoilt = bytearray(content)
    spoilt[-3] ^= 1
    journal.write_bytes(spoilt)
    images = read_images(shards, 1, Journal(journal))
    assert len(read_tars) == 1
    assert list_of(images, tmp_path / "l.npy") == (tmp_path / "wanted.npy").read_bytes()


@pytest.mark.parametrize("which", ["tar", "parquet"])
def test_a_shard_that_has_changed_is_read_again(
    tmp_path: Path, read_tars: list[str], which: str
) -> None:
    made = write_download(tmp_path, 60, num_shards=4)
    shards = list_shards(str(made.shards), "SHARDS")
    read_images(shards, 1, Journal(tmp_path / "journal"))
    write_shard(made.shards, 2, UIDS, THERE)
    other = made.shards / f"00000001.{which}"
    os.utime(other, ns=(1, other.stat().st_mtime_ns + 1))
    read_tars.clear()
    images = read_images(shards, 1, Journal(tmp_path / "journal"))
    assert read_tars == ["1", "2"]
    assert set(AT_HAND) <= {f"{a:016x}{b:016x}" for uids in images.uids for a, b in uids.tolist()}


def test_a_shard_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = shard(tmp_path)

    def read(path: str) -> TarUids | None:
        found = uids_of_table(path)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(images_module, "uids_of_table", read)
    images = read_images([str(tar)], 1, Journal(tmp_path / "journal"))
    assert images.unreadable == {str(tar): "it changed while it was read"}
    monkeypatch.undo()
    images = read_images([str(tar)], 1, Journal(tmp_path / "journal"))
    assert not images.unreadable


@pytest.mark.parametrize("content", [b"x", b"datacomp_flyt of mine", bytes(64), b"\n"])
def test_a_file_of_somebody_else_is_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal").write_bytes(content)
    assert "holds no notes of this command" in refusal(Journal, tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == content


def test_the_function(tmp_path: Path) -> None:
    made = write_download(tmp_path, 60, num_shards=4)
    path, truncated = tmp_path / "list.npy", made.shards / "00000001.tar"
    os.truncate(truncated, 2000)
    message = refusal(datacomp_flyt.list_images, str(made.shards), save_path=path)
    assert "1 of 4 tars cannot be used" in message
    assert not path.exists()
    images = datacomp_flyt.list_images(
        str(made.shards), save_path=str(path), allow_unreadable=True, num_workers=1
    )
    uids = np.load(path)
    assert images.path == path
    assert images.num_images == len(uids) < len(made.at_hand)
    assert np.isin(uids, sorted_uids(made.at_hand)).all()
    assert images.num_tars == 4
    assert list(images.unreadable) == [str(truncated)]
