"""A file that is replaced during a run is detected even if size and time are equal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datacomp_flyt.errors import ChangedError
from datacomp_flyt.files import open_file
from datacomp_flyt.files.folders import check_unchanged, list_folder
from datacomp_flyt.files.open_file import Version, is_same
from datacomp_flyt.pool import folder_hashes
from datacomp_flyt.pool.embeddings import iter_embeddings
from datacomp_flyt.pool.parquet import ParquetShard, check_shards, open_shards
from datacomp_flyt.pool.pool import check_npz
from datacomp_flyt.tars.shards import watch_tars
from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.conftest import hex_uids, make_pool, write_files, write_parquet
from tests.engines.here import Here
from tests.files.replacements import REPLACE, Replace, dated

ROWS = 20


def table(folder: Path, tag: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"uid": hex_uids(ROWS, tag), "x": np.arange(ROWS, dtype=np.float32)}
    write_parquet(folder / "a.parquet", columns, compression="none", use_dictionary=False)
    np.savez(folder / "a.npz", b32_img=np.full((ROWS, 4), 1 + (tag == "a"), np.float32))
    return folder


def other(folder: Path, name: str) -> bytes:
    """Return other content of the same size."""
    return (table(folder / "of_another", "b") / name).read_bytes()


@pytest.mark.parametrize("replace", REPLACE)
@pytest.mark.parametrize("name", ["a.parquet", "a.npz"])
def test_every_reader_notices(tmp_path: Path, replace: Replace, name: str) -> None:
    folder, content = table(tmp_path / "pool"), other(tmp_path, name)
    (shard,) = open_shards(str(folder), "--metadata_dir", 1)
    listed = list_folder(str(folder), "--metadata_dir", (name,))
    path = folder / name
    before = path.stat()
    assert len(content) == before.st_size
    assert content != path.read_bytes()
    replace(path, content)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    readers: list[Callable[[], Any]] = [lambda: check_unchanged(listed.fs, listed.versions)]
    if name == "a.npz":
        readers += [lambda: list(iter_embeddings(shard, ["b32_img"])), lambda: check_npz(shard)]
    else:
        readers += [lambda: list(shard.batches("x")), lambda: list(shard.rows_with_uids())]
        readers += [lambda: check_shards([shard])]
    for read in readers:
        with pytest.raises(ChangedError, match=f"{name} has changed since this run began"):
            read()


def switch(link: Path, to: Path) -> None:
    new = link.with_name("new_link")
    new.symlink_to(to)
    new.replace(link)


@pytest.mark.parametrize("what", ["table", "npz"])
def test_a_folder_that_is_switched_and_switched_back(tmp_path: Path, what: str) -> None:
    """The path is restored in the end; only the open file differs."""
    table(tmp_path / "one")
    table(tmp_path / "two", "b")
    for name in ("a.parquet", "a.npz"):
        dated(tmp_path / "two" / name, (tmp_path / "one" / name).stat())
    (tmp_path / "pool").symlink_to("one")
    (shard,) = open_shards(str(tmp_path / "pool"), "--metadata_dir", 1)
    switch(tmp_path / "pool", Path("two"))
    with pytest.raises(ChangedError, match="has changed"):
        list(shard.batches("x") if what == "table" else iter_embeddings(shard, ["b32_img"]))
    switch(tmp_path / "pool", Path("one"))
    check_shards([shard])
    assert len(list(shard.batches("x"))) == 1


@pytest.mark.parametrize("replace", REPLACE)
def test_tars(tmp_path: Path, replace: Replace) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(b"a" * 1000)
    check = watch_tars({"0": str(path)})
    check("0")
    replace(path, b"b" * 1000)
    with pytest.raises(ChangedError):
        check("0")


@pytest.mark.parametrize("replace", REPLACE)
@pytest.mark.parametrize("work", [False, True])
def test_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: Replace, work: bool
) -> None:
    """Replace the score table between two reads."""
    job = Job(make_pool(30), tmp_path).write(1)
    path = job.scores / "part-00000.parquet"
    write_files(tmp_path / "other", make_pool(30, seed=1).scores)
    content = (tmp_path / "other" / path.name).read_bytes()
    assert len(content) == path.stat().st_size
    real = ParquetShard.rows_with_uids

    def replacing(self: ParquetShard, *columns: Any) -> Any:
        if self.path == str(path) and path.read_bytes() != content:
            replace(path, content)
        return real(self, *columns)

    monkeypatch.setattr(ParquetShard, "rows_with_uids", replacing)
    flags = ["--name", "scs", "--column", "FLYT", "--num_samples", 50, "--repetition_penalty", 0.3]
    if work:
        monkeypatch.setattr("datacomp_flyt.selection.open_pool.choose_engine", lambda *_: Here())
        flags += ["--work_dir", tmp_path / "work"]
    assert_refused(in_process(*job.flags(*flags)), f"{path} has changed")
    assert not job.save_path.exists()


@pytest.mark.parametrize("replace", REPLACE)
def test_a_manifest_hashes_what_took_a_file_s_place(tmp_path: Path, replace: Replace) -> None:
    """The journal of a killed command has the hash of the replaced file."""
    folder, content = table(tmp_path / "pool"), other(tmp_path, "a.parquet")
    journal = tmp_path / "m.json.hashed.jsonl"
    before = folder_hashes.hash_folder(str(folder), "the folder", journal, 1)
    assert folder_hashes.hash_folder(str(folder), "the folder", journal, 1) == before
    replace(folder / "a.parquet", content)
    after = folder_hashes.hash_folder(str(folder), "the folder", journal, 1)
    assert after["a.parquet"] != before["a.parquet"]
    assert after["a.npz"] == before["a.npz"]


@pytest.mark.parametrize("change", ["nothing", "permissions", "copy", "hard link", "old notes"])
def test_notes_of_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Unchanged files are not hashed again; possibly replaced ones are, without an error."""
    folder, journal = table(tmp_path / "pool"), tmp_path / "m.json.hashed.jsonl"
    path = folder / "a.parquet"
    found = folder_hashes.hash_folder(str(folder), "the folder", journal, 1)
    if change == "permissions":
        path.chmod(0o600)
    elif change == "copy":
        shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(folder)
        (tmp_path / "copy").rename(folder)
    elif change == "hard link":
        (tmp_path / "link").hardlink_to(path)
    elif change == "old notes":
        notes = [json.loads(line) for line in journal.read_text().split("\n") if line]
        old = [[path, version[:2], entry] for path, version, entry in notes]
        journal.write_text("\n".join(map(json.dumps, old)))
    hashed: list[str] = []
    real = folder_hashes._hash

    def hash_(folder: Any, path: str, version: Any) -> Any:
        hashed.append(path)
        return real(folder, path, version)

    monkeypatch.setattr(folder_hashes, "_hash", hash_)
    assert folder_hashes.hash_folder(str(folder), "the folder", journal, 1) == found
    assert len(hashed) == {"nothing": 0, "permissions": 1, "hard link": 1}.get(change, 2)


@pytest.mark.parametrize("change", ["permissions", "copy", "hard link"])
def test_a_work_dir_outlives_what_keeps_content_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("datacomp_flyt.selection.open_pool.choose_engine", lambda *_: Here())
    job = Job(make_pool(30), tmp_path).write(1)
    flags = ("--name", "scs", "--column", "FLYT", "--num_samples", 50, "--repetition_penalty", 0.3)
    work = ("--work_dir", tmp_path / "work")
    job.select(*flags, *work)
    first, path = job.save_path.read_bytes(), job.scores / "part-00000.parquet"
    if change == "permissions":
        path.chmod(0o600)
    elif change == "copy":
        shutil.copy2(path, tmp_path / "copy")
        (tmp_path / "copy").replace(path)
    else:
        (tmp_path / "link").hardlink_to(path)
    job.save_path.unlink()
    assert in_process(*job.flags(*flags, *work)).code == 0
    assert job.save_path.read_bytes() == first


MOUNTS = "22 1 {}:{} / / rw,relatime shared:1 - {} /dev/x rw\n"


@pytest.mark.parametrize(
    ("kind", "same"),
    [
        ("ext4", False),
        ("xfs", False),
        ("nfs4", False),
        ("fuse.sshfs", True),
        ("cifs", True),
        ("vfat", True),
        ("exfat", True),
        ("9p", True),
    ],
)
def test_filesystems_that_number_files_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, same: bool
) -> None:
    path = tmp_path / "a"
    path.touch()
    device = path.stat().st_dev
    mounts = MOUNTS.format(os.major(device), os.minor(device), kind)
    monkeypatch.setattr(open_file.Path, "read_text", lambda self: mounts)
    one = Version(3, "5", 7, 11)
    assert is_same(str(path), one, one)
    assert is_same(str(path), one, one._replace(inode=12)) is same
    for changed in (one._replace(changed=8), one._replace(mark="6"), one._replace(size=4)):
        assert not is_same(str(path), one, changed._replace(inode=12))
        assert not is_same(str(path), one, changed)
