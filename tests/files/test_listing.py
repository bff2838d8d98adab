"""Listing of files: data, files that are passed over with a message, and refusals."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.errors import InputError
from datacomp_flyt.files import listing
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.files.listing import local_path
from datacomp_flyt.files.open_file import open_file
from datacomp_flyt.pool.embeddings import embedding_widths
from datacomp_flyt.pool.folder_hashes import hash_folder
from datacomp_flyt.pool.parquet import open_file_or_folder, open_shards
from datacomp_flyt.scorers.linear_classifier.training_rows import find_embeddings
from datacomp_flyt.self_filtering.link_external_scores import link_external_scores
from datacomp_flyt.tars.shard_names import absolute_path, shards_by_name
from datacomp_flyt.tars.shards import Stream, is_stream, list_shards
from tests.conftest import hex_uids, refusal

TABLES = (".parquet", ".npz")


@pytest.fixture(autouse=True)
def _said_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_PRINTED", set())


def table(path: Path, tag: str = "a") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table({"uid": hex_uids(2, tag), "score": np.arange(2.0)})
    with path.open("wb") as file:
        pq.write_table(made, file)
    return path


def names(folder: Path, recursive: bool = True, endings: tuple[str, ...] = TABLES) -> list[str]:
    found = list_folder(str(folder), "--scores_dir", endings, recursive)
    return [found.name(path) for path in found.versions]


# ------------------------------------------------------------------------- what is data


@pytest.mark.parametrize(
    "name",
    [
        "a.parquet", "A.PARQUET", "x y.parquet", "[1].parquet", "a*b?.parquet", "{0..3}.parquet",
        "a::b.parquet", "file:a.parquet", "pipe:touch x.parquet", "a\nb.parquet", "é\u202e.parquet",
        os.fsdecode(b"\xff\xfe.parquet"), "~.parquet", "a%20b#c.parquet", "-.parquet",
    ],
)  # fmt: skip
def test_any_name_of_a_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = table(tmp_path / "plain.parquet")
    odd = Path(os.path.join(tmp_path / "pool", name))
    odd.parent.mkdir()
    shutil.copyfile(plain, odd)
    (shard,) = open_shards(str(tmp_path / "pool"), "--metadata_dir", 1)
    assert os.path.samefile(shard.path, odd)
    assert len(next(iter(shard.rows_with_uids()))[0]) == 2
    monkeypatch.chdir(tmp_path / "pool")
    (alone,) = open_file_or_folder(name, "--weights", 1)
    assert alone.num_rows == 2


@pytest.mark.parametrize(
    "name",
    [
        "pool[1]",
        "p*?",
        "{a,b}",
        "a::b",
        "file:x",
        "pipe:ls",
        "memory:",
        "~",
        "a\nb",
        "part.parquet",
    ],
)
def test_any_name_of_a_folder(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / name / "b.parquet")
    tar = tmp_path / name / "0[1].tar"
    tar.touch()
    monkeypatch.chdir(tmp_path)
    for where in (name, str(tmp_path / name)):
        assert [shard.num_rows for shard in open_shards(where, "--metadata_dir", 1)] == [2]
        assert [os.path.basename(path) for path in list_shards(where, "--shards_dir")] == [tar.name]
        for pattern in ("*.tar", "0*.tar", "{0[1],x}.tar", "0[1].tar"):
            found = list_shards(f"{where}/{pattern}", "--shards_dir")
            assert os.path.samefile(found[0], tar)
            assert not is_stream(found[0])


def test_links_are_followed_and_loops_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "elsewhere" / "deep" / "a.parquet")
    scores = tmp_path / "scores"
    table(scores / "z" / "b.parquet")
    (scores / "c.parquet").symlink_to(tmp_path / "elsewhere" / "deep" / "a.parquet")
    (scores / "linked").symlink_to(tmp_path / "elsewhere")
    (scores / "z" / "up").symlink_to(scores)
    (scores / "z" / "self").symlink_to(scores / "z" / "self")
    (scores / "a").symlink_to(scores / "z")  # listed anyway, under its own name
    assert names(scores) == ["c.parquet", "linked/deep/a.parquet", "z/b.parquet"]
    assert "a link to a folder that is listed anyway (2, such as" in capsys.readouterr().out
    assert names(scores, recursive=False) == ["c.parquet"]
    assert names(tmp_path / "scores" / "linked") == ["deep/a.parquet"]


def test_a_link_to_a_folder_of_tables_is_read_by_all(tmp_path: Path) -> None:
    table(tmp_path / "elsewhere" / "a.parquet")
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "column").symlink_to(tmp_path / "elsewhere")
    assert len(open_shards(str(scores), "--scores_dir", 1, recursive=True)) == 1
    assert list(hash_folder(str(scores), "", tmp_path / "journal", 1)) == ["column/a.parquet"]
    assert link_external_scores(scores, tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["external/column/a.parquet"]


@pytest.mark.parametrize("ending", ["npz", "NPZ", "Npz"])
def test_npz_in_any_case(tmp_path: Path, ending: str) -> None:
    table(tmp_path / "A.PARQUET")
    np.savez(tmp_path / "a.npz", x=np.eye(2, 3, dtype=np.float32))
    (tmp_path / "a.npz").rename(tmp_path / f"A.{ending}")
    (file,) = find_embeddings([str(tmp_path)], ["x"], "--positives")
    assert (file.num_rows, file.width) == (2, 3)
    if ending != "Npz":
        (shard,) = open_shards(str(tmp_path), "--metadata_dir", 1)
        assert embedding_widths(shard, ["x"]) == (3,)


# ------------------------------------------------------------------- passed over and said


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    there = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(there)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def content(path: Path) -> None:
    path.write_bytes(b"not to be read")


def folder(path: Path) -> None:
    path.mkdir()
    content(path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("._a.parquet", content, listing.HIDDEN),
        (".a.parquet.0123456789abcdef", content, listing.HIDDEN),
        ("_SUCCESS", content, listing.HIDDEN),
        ("_metadata", content, listing.HIDDEN),
        (".part-0.parquet.crc", content, listing.HIDDEN),
        (".ipynb_checkpoints", folder, listing.HIDDEN),
        ("_temporary", folder, listing.HIDDEN),
        ("pipe.parquet", fifo, listing.NOT_REGULAR),
        ("socket.parquet", unix_socket, listing.NOT_REGULAR),
        ("device.parquet", device, listing.NOT_REGULAR),
        ("gone", dangling, listing.DANGLING),
        ("gone.npz", dangling, listing.DANGLING),
        ("b.parquet.gz", content, listing.OTHER_ENDING),
        ("b.parquet~", content, listing.OTHER_ENDING),
        ("b.parquet.crdownload", content, listing.OTHER_ENDING),
    ],
)
@pytest.mark.parametrize("recursive", [True, False])
def test_what_is_no_data_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], None],
    reason: str,
    recursive: bool,
) -> None:
    table(tmp_path / "a.parquet")
    make(tmp_path / name)
    assert names(tmp_path, recursive) == ["a.parquet"]
    out = capsys.readouterr().out
    assert out == f"--scores_dir {tmp_path}: passed over 1: {reason} (1, such as {name})\n"
    names(tmp_path, recursive)
    assert capsys.readouterr().out == ""  # it is said once
    (tmp_path / "a.parquet").unlink()
    said = refusal(open_shards, str(tmp_path), "--scores_dir", 1, recursive)
    assert "holds no .parquet file (passed over 1: " in said
    assert name in said


def test_our_own_notes_are_not_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path / "a.parquet")
    for name in ("settings.json", "_settings.json", ".lock", ".a.parquet.lock"):
        content(tmp_path / name)
    folder(tmp_path / "_passes")
    assert names(tmp_path) == ["a.parquet"]
    assert capsys.readouterr().out == ""


def test_sub_folders_that_are_not_looked_into_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "a.parquet")
    table(tmp_path / "more" / "b.parquet")
    assert names(tmp_path, recursive=False) == ["a.parquet"]
    assert "1: a sub-folder, which is not looked into (1, such as more)" in capsys.readouterr().out


def test_names_are_printed_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "a.parquet")
    content(tmp_path / "._\x1b[2J\n.parquet")
    names(tmp_path)
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert out.count("\n") == 1


# ----------------------------------------------------------------------------- refused


def test_spark_output_named_like_a_file(tmp_path: Path) -> None:
    part = tmp_path / "scores.parquet"
    table(part / "part-0.snappy.parquet")
    content(part / "_SUCCESS")
    (only,) = open_file_or_folder(str(part), "--weights", 1)
    assert only.num_rows == 2
    assert len(open_shards(str(tmp_path), "--scores_dir", 1, recursive=True)) == 1
    table(tmp_path / "a.parquet")
    said = refusal(open_shards, str(tmp_path), "--metadata_dir", 1)
    assert "scores.parquet is a folder, named like a file, such as Spark writes" in said
    (tmp_path / "0.tar").mkdir()
    assert "0.tar is a folder" in refusal(list_shards, str(tmp_path), "--shards_dir")


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.tar", "A.TAR", "self.parquet", "self.tar", "b.Parquet"]
)
def test_links_that_lead_nowhere_are_refused(tmp_path: Path, name: str) -> None:
    target = name if name.startswith("self") else "gone"
    (tmp_path / name).symlink_to(tmp_path / target)
    ending = os.path.splitext(name)[1].lower()
    said = refusal(list_folder, str(tmp_path), "--x", (ending,))
    assert f"{name} is a link to {tmp_path / target}, which cannot be reached" in said
    (tmp_path / name).rename(tmp_path / f".{name}")
    assert names(tmp_path, endings=(ending,)) == []


@pytest.mark.parametrize("recursive", [True, False])
def test_a_folder_that_may_not_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recursive: bool
) -> None:
    table(tmp_path / "a.parquet")
    locked = tmp_path / "locked"
    table(locked / "b.parquet")
    real = os.scandir

    def scandir(path: str) -> object:
        if path == str(locked):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    if recursive:
        said = refusal(list_folder, str(tmp_path), "--scores_dir", TABLES, True)
        assert "cannot be listed" in said
        assert "locked" in said
    else:
        assert names(tmp_path, recursive=False) == ["a.parquet"]


@pytest.mark.parametrize("make", [fifo, unix_socket, device])
@pytest.mark.parametrize("name", ["x.parquet", "x.tar"])
def test_no_pipe_or_device_is_opened(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    make(tmp_path / name)
    path = str(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        open_file(fsspec.filesystem("file"), path)
    if name.endswith("tar"):
        assert "not a regular file" in refusal(list_shards, path, "--shards_dir")
        said = refusal(list_shards, str(tmp_path / "*.tar"), "--shards_dir")
        assert "names no file that is there (passed over 1: not a regular file" in said
    else:
        assert "not a regular file" in refusal(open_file_or_folder, path, "--weights", 1)


# --------------------------------------------------------------------- tars and patterns


def tars(folder: Path, *found: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in found:
        (folder / name).touch()
    return [str(folder / name) for name in found]


@pytest.mark.parametrize(
    "name", ["{0..3}.tar", "[0].tar", "*.tar", "a?.tar", "{.tar", "pipe:true.tar", "a::b.tar"]
)
def test_a_pattern_that_is_a_files_name_is_that_file(tmp_path: Path, name: str) -> None:
    tars(tmp_path, name, "0.tar", "1.tar", "ab.tar")
    assert list_shards(str(tmp_path / name), "--shards_dir") == [str(tmp_path / name)]


def test_folders_in_the_middle_of_a_pattern(tmp_path: Path) -> None:
    one = tars(tmp_path / "a[1]" / "{x}", "0.tar", "1.tar")
    tars(tmp_path / "a1" / "x", "0.tar", "1.tar")
    assert list_shards(f"{tmp_path}/a[1]/{{x}}/*.tar", "--s") == one
    assert list_shards(f"{tmp_path}/a[1]/{{x}}/{{0..1}}.tar", "--s") == one
    assert list_shards(f"{tmp_path}/a?1]/*/0.tar", "--s") == one[:1]
    assert list_shards(f"{tmp_path}//a1/{{x/0,x/1}}.tar", "--s")[1].endswith("a1/x/1.tar")
    assert len(list_shards(f"{tmp_path}/*/*/*.tar", "--s")) == 4


def test_patterns_pass_over_hidden_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars(tmp_path, "._0.tar", "_1.tar", "2.tar")
    assert list_shards(f"{tmp_path}/*.tar", "--s") == [str(tmp_path / "2.tar")]
    assert "passed over 2: hidden or named _... (2, such as ._0.tar)" in capsys.readouterr().out
    assert list_shards(f"{tmp_path}/_*.tar", "--s") == [str(tmp_path / "_1.tar")]
    (tmp_path / "3.tar").mkdir()
    assert "3.tar, which is a folder" in refusal(list_shards, f"{tmp_path}/*.tar", "--s")


def test_tars_in_any_case_and_compressed_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars(tmp_path, "0.tar", "1.TAR", "2.tar.gz")
    found = list_shards(str(tmp_path), "--s")
    assert [os.path.basename(path) for path in found] == ["0.tar", "1.TAR"]
    assert "with more after the ending (1, such as 2.tar.gz)" in capsys.readouterr().out
    assert list_shards(f"{tmp_path}/*.tar.gz", "--s") == [str(tmp_path / "2.tar.gz")]


def test_hidden_shards_would_make_hidden_results(tmp_path: Path) -> None:
    for name in ("_0.tar", ".0.tar"):
        message = refusal(shards_by_name, tars(tmp_path, name), "--shards_dir")
        assert "would be passed over" in message


# --------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("where", "local"),
    [
        ("s3://bucket/x", None), ("memory://x", None), ("simplecache::s3://b/x", None),
        ("file:///data/x", "/data/x"), ("a::b", "a::b"), ("file:x", "file:x"), ("s3:x", "s3:x"),
        ("pipe:ls", "pipe:ls"), ("a/b://c", "a/b://c"), ("/s3://x", "/s3://x"), ("c:/x", "c:/x"),
    ],
)  # fmt: skip
def test_what_is_an_address(where: str, local: str | None) -> None:
    assert local_path(where) == local


def test_resolved_names_mean_the_same_from_anywhere() -> None:
    assert absolute_path("pipe:x") == os.path.abspath("pipe:x")
    assert absolute_path("s3://x/{0..3}.tar") == "s3://x/{0..3}.tar"


def test_addresses_are_streams_and_cannot_leave_their_quotes() -> None:
    found = list_shards("https://host/{0..1}.tar", "--shards_dir")
    assert all(isinstance(shard, Stream) for shard in found)
    assert "quote" in refusal(list_shards, "https://host/'; touch x; '.tar", "--shards_dir")


def test_a_cloud_is_listed_alike(memory_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    fs = fsspec.filesystem("memory")
    for name in (
        "a.parquet",
        "_SUCCESS",
        "._a.parquet",
        "b.parquet.gz",
        "sub/c.PARQUET",
        "_x/d.parquet",
    ):
        fs.pipe_file(f"/pool/{name}", b"1")
    found = list_folder(memory_folder, "--x", TABLES, recursive=True)
    assert [found.name(path) for path in found.versions] == ["a.parquet", "sub/c.PARQUET"]
    said = capsys.readouterr().out
    assert "hidden or named _... (3, such as" in said
    assert "with more after the ending (1" in said
    assert list(list_folder(memory_folder, "--x", TABLES).versions) == ["/pool/a.parquet"]
    fs.pipe_file("/pool/e.parquet/part-0.parquet", b"1")
    with pytest.raises(InputError, match=r"e\.parquet is a folder"):
        list_folder(memory_folder, "--x", TABLES)
    assert (
        "/pool/e.parquet/part-0.parquet" in list_folder(memory_folder, "--x", TABLES, True).versions
    )


def test_arrow_reads_what_was_listed(tmp_path: Path) -> None:
    """A name that is not valid text is opened by Python, and Arrow reads it."""
    odd = Path(os.path.join(tmp_path, os.fsdecode(b"\xff.parquet")))
    shutil.copyfile(table(tmp_path / "plain.parquet"), odd)
    shards = open_shards(str(tmp_path), "--metadata_dir", 1)
    batches = [next(shard.rows(["uid", "score"])) for shard in shards]
    assert batches[0].equals(batches[1])
