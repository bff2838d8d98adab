"""Manifests: their content, the differences that they find, and resuming."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import datacomp_flyt
from datacomp_flyt.cli import main
from datacomp_flyt.files import output_files
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.pool import folder_hashes, manifest
from datacomp_flyt.pool.folder_hashes import hash_folder
from datacomp_flyt.pool.manifest import check_against, read_manifest, save_manifest
from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.conftest import make_pool, refusal, write_files, write_parquet

POOL = make_pool(30)
SCS = ("--name", "scs", "--column", "FLYT", "--num_samples", 50, "--repetition_penalty", 0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three parquet files, an npz, a tar and another file."""
    made = Path(write_files(tmp_path / "metadata", POOL.metadata, 3))
    np.savez(made / "part-00001.npz", a=np.arange(10))
    (made / "below").mkdir()
    (made / "below" / "00000000.tar").write_bytes(b"a tar")
    (made / "notes.txt").write_text("no shard")
    return made


def run(*words: object) -> int:
    """Run `datacomp-flyt manifest`; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["manifest", *map(str, words), "--num_workers", "2"])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_it_says(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "--save_path", tmp_path / "m.json") == 0
    said = json.loads((tmp_path / "m.json").read_text())
    assert said["format"] == manifest.FORMAT
    names = ["below/00000000.tar", *(f"part-0000{n}.{e}" for n, e in PARTS)]
    assert [file["name"] for file in said["files"]] == names
    for file in said["files"]:
        content = (folder / file["name"]).read_bytes()
        assert file["size"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["rows"] == (10 if file["name"].endswith("parquet") else None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "metadata"]
    assert run(folder, "--check", tmp_path / "m.json") == 0
    assert run(folder, "--check", tmp_path / "m.json", "--fast") == 0


def test_the_functions(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    written = datacomp_flyt.write_manifest(folder, save_path=path, num_workers=1)
    assert written == read_manifest(path)
    assert [written[name].rows for name in sorted(written)][:2] == [None, 10]
    for fast in (True, False):
        assert datacomp_flyt.check_manifest(str(folder), manifest=path, fast=fast) == written
    (folder / "part-00000.parquet").unlink()
    for fast in (True, False):
        message = refusal(datacomp_flyt.check_manifest, folder, manifest=path, fast=fast)
        assert "1 missing: part-00000.parquet" in message
    for function, file in (
        (datacomp_flyt.write_manifest, {"save_path": path}),
        (datacomp_flyt.check_manifest, {"manifest": path}),
    ):
        assert "--num_workers is 0" in refusal(function, folder, num_workers=0, **file)


PARTS = [("0", "parquet"), ("1", "npz"), ("1", "parquet"), ("2", "parquet")]


def test_cloud(memory_folder: str, tmp_path: Path) -> None:
    write_files(memory_folder, POOL.metadata, 2)
    assert run(memory_folder, "--save_path", tmp_path / "m.json") == 0
    assert list(read_manifest(tmp_path / "m.json")) == ["part-00000.parquet", "part-00001.parquet"]
    assert run(memory_folder, "--check", tmp_path / "m.json") == 0


def test_what_it_finds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.json"
    run(folder, "--save_path", path)
    (folder / "part-00000.parquet").unlink()
    shutil.copy(folder / "part-00002.parquet", folder / "copy.parquet")
    tar = folder / "below" / "00000000.tar"
    tar.write_bytes(b"a bar")
    capsys.readouterr()
    assert run(folder, "--check", path, "--fast") == 2
    error = capsys.readouterr().err
    assert "1 missing: part-00000.parquet; 1 additional: copy.parquet)" in error
    assert run(folder, "--check", path) == 2
    found = capsys.readouterr()
    assert found.out.splitlines() == [
        "missing: part-00000.parquet",
        "additional: copy.parquet",
        "changed: below/00000000.tar",
    ]
    assert "1 changed: below/00000000.tar" in found.err
    tar.write_bytes(b"a longer tar")
    assert run(folder, "--check", path, "--fast") == 2
    assert "1 changed: below/00000000.tar" in capsys.readouterr().err
    # two files of the same bytes are no manifest
    assert run(folder, "--save_path", tmp_path / "other.json") == 2
    error = capsys.readouterr().err
    assert "copy.parquet and part-00002.parquet are the same file twice" in error
    assert not (tmp_path / "other.json").exists()


def test_shards_without_a_row_may_be_alike(tmp_path: Path) -> None:
    folder = tmp_path / "metadata"
    empty = {name: values[:0] for name, values in POOL.metadata.items()}
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        write_parquet(folder / name / "part-00000.parquet", empty)
        np.savez(folder / name / "part-00000.npz", x=np.empty((0, 2)))
    write_files(folder / "c", POOL.metadata)
    assert run(folder, "--save_path", tmp_path / "m.json") == 0


def test_tars_without_a_member_may_be_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards whose downloads all failed have equal tars, and tables with rows."""
    folder = tmp_path / "shards"
    write_files(folder, POOL.metadata, 3)
    for number in range(3):
        tarfile.open(folder / f"part-0000{number}.tar", "w").close()
    assert run(folder, "--save_path", tmp_path / "m.json") == 0
    assert run(folder, "--check", tmp_path / "m.json") == 0
    with tarfile.open(folder / "part-00000.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("0.txt"))
    shutil.copy(folder / "part-00000.tar", folder / "part-00001.tar")
    sizes = {path.stat().st_size for path in folder.glob("*.tar")}
    assert sizes == {tarfile.RECORDSIZE}
    assert run(folder, "--save_path", tmp_path / "m.json") == 2
    assert "part-00000.tar and part-00001.tar are the same file" in capsys.readouterr().err


def test_what_was_hashed_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = folder_hashes._hash

    def stopping(
        at: folder_hashes.Folder, path: str, version: folder_hashes.Version
    ) -> folder_hashes.HashedFile:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(path)
        return real(at, path, version)

    journal = tmp_path / "journal"
    monkeypatch.setattr(folder_hashes, "_hash", stopping)
    with pytest.raises(KeyboardInterrupt):
        hash_folder(str(folder), "the folder", journal, 1)
    with journal.open("a") as file:
        file.write('["cut off')
    changed = folder / Path(read[0]).relative_to(folder)
    changed.write_bytes(b"a tar of another length")
    again: list[str] = []
    monkeypatch.setattr(folder_hashes, "_hash", lambda *a: (again.append(a[1]), real(*a))[1])
    found = hash_folder(str(folder), "the folder", journal, 1)
    assert sorted(again) == sorted({str(folder / name) for name in found} - set(read[1:]))
    monkeypatch.setattr(folder_hashes, "_hash", None)
    assert hash_folder(str(folder), "the folder", journal, 1) == found


def test_a_check_reads_all_unless_one_was_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spoilt = tmp_path / "m.json", folder / "part-00001.parquet"
    assert run(folder, "--save_path", path) == 0
    hash_folder(str(folder), "the folder", tmp_path / "m.json.hashed.jsonl", 1)
    files = sorted(tmp_path.iterdir())
    content, time = spoilt.read_bytes(), spoilt.stat().st_mtime_ns
    for wrong in (b"no parquet", content.replace(b"uid", b"vid"), content):
        for _ in range(2):
            spoilt.write_bytes(wrong)
            os.utime(spoilt, ns=(time, time))
            assert run(folder, "--check", path) == (0 if wrong == content else 2)
            assert sorted(tmp_path.iterdir()) == files
    hash_folder(str(folder), "the folder", tmp_path / "m.json.checked.jsonl", 1)
    monkeypatch.setattr(folder_hashes, "_hash", None)
    assert run(folder, "--check", path) == 0
    assert sorted(tmp_path.iterdir()) == files


def test_a_check_by_a_manifest_on_a_read_only_share(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read_only(**words: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    path = tmp_path / "m.json"
    assert run(folder, "--save_path", path) == 0
    monkeypatch.setattr(output_files.tempfile, "TemporaryFile", read_only)
    capsys.readouterr()
    assert run(folder, "--check", path) == 0
    error = capsys.readouterr().err
    assert error == f"{tmp_path} cannot be written: if this check is killed, it begins anew\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "metadata"]


def test_a_manifest_removes_what_a_killed_one_left(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".m.json.0123456789abcdef.datacomp_flyt.tmp").write_text("half of one")
    (tmp_path / ".other.json.ab_12xyz").write_text("of another")
    assert run(folder, "--save_path", tmp_path / "m.json") == 0
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == [".other.json.ab_12xyz", "m.json", "metadata"]


def test_notes_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_hashes, "_read_journal", lambda path: {})
    said = refusal(hash_folder, str(folder), "the folder", Path("/dev/full"), 1)
    assert said == "/dev/full cannot be written (No space left on device)"


def test_a_file_that_changes_while_it_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = folder_hashes.check_unchanged

    def changing(fs: object, versions: dict[str, folder_hashes.Version]) -> None:
        with open(next(iter(versions)), "ab") as file:
            file.write(b"more")
        real(fs, versions)

    monkeypatch.setattr(folder_hashes, "check_unchanged", changing)
    said = refusal(hash_folder, str(folder), "the folder", tmp_path / "journal", 1)
    assert "00000000.tar has changed since this run began" in said


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": "x"}', '{"format": "datacomp_flyt manifest 1"}',
                '{"format": "datacomp_flyt manifest 1", "files": [{"name": "a"}]}', "[" * 9999],
)  # fmt: skip
def test_what_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    assert "m.json is no manifest" in refusal(read_manifest, tmp_path / "m.json")


def test_names_without_an_ending(folder: Path, tmp_path: Path) -> None:
    entries = [{"name": name, "size": 1, "sha256": name, "rows": None} for name in ("a", "b.tar")]
    content = {"format": manifest.FORMAT, "files": entries}
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert list(read_manifest(tmp_path / "m.json")) == ["a", "b.tar"]
    entries[1].update(name="b", sha256="a")
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert "a and b are the same file twice" in refusal(read_manifest, tmp_path / "m.json")


def test_bad_places(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for words, said in (
        ((tmp_path / "none", "--save_path", tmp_path / "m.json"), "none is not a folder"),
        (
            (tmp_path / "empty", "--save_path", tmp_path / "m.json"),
            "empty holds no .parquet or .npz or .tar file",
        ),
        ((folder, "--check", tmp_path / "none.json"), "none.json cannot be read"),
        ((folder, "--save_path", tmp_path / "m.json", "--fast"), "--fast is for --check"),
        ((folder, "--save_path", folder), "is a folder"),
    ):
        assert run(*words) == 2
        assert said in capsys.readouterr().err
    (folder / "part-00000.parquet").write_bytes(b"no parquet")
    assert run(folder, "--save_path", tmp_path / "m.json") == 2
    assert "part-00000.parquet cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


# ------------------------------------------------------------------------ selection by it


@pytest.mark.parametrize("work", [False, True])
def test_selection_refuses_another_pool(tmp_path: Path, work: bool) -> None:
    job = Job(POOL, tmp_path).write(3)
    flags = [*SCS, "--manifest", tmp_path / "m.json"]
    if work:
        flags += ["--work_dir", tmp_path / "work"]
    assert run(job.metadata, "--save_path", tmp_path / "m.json") == 0
    found = dict(read_manifest(tmp_path / "m.json"))
    write_files(job.metadata / "more", make_pool(5, tag="more").metadata)
    outcome = in_process(*job.flags(*flags))
    assert_refused(outcome, "--metadata_dir", "1 additional: more/part-00000.parquet")
    shutil.rmtree(job.metadata / "more")
    first = found["part-00000.parquet"]
    found["part-00000.parquet"] = folder_hashes.HashedFile(first.size + 1, first.sha256, first.rows)
    save_manifest(tmp_path / "m.json", found)
    outcome = in_process(*job.flags(*flags))
    assert_refused(outcome, "--metadata_dir", "1 changed: part-00000.parquet")
    assert not job.save_path.exists()
    found["part-00000.parquet"] = first
    save_manifest(tmp_path / "m.json", found)
    check_against(str(tmp_path / "m.json"), str(job.metadata), "--metadata_dir")
    job.select(*flags)
    assert job.save_path.exists()


@pytest.mark.parametrize("work", [False, True])
@pytest.mark.parametrize("which", ["metadata", "scores"])
def test_selection_refuses_what_changes_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: bool, which: str
) -> None:
    from datacomp_flyt.mixing import columns as module

    job = Job(POOL, tmp_path).write(3)
    changed = tmp_path / which / "part-00001.parquet"

    def touched(*arguments: object) -> None:
        os.utime(changed, (1, 1))
        real(*arguments)

    real = module.check_shards
    monkeypatch.setattr(module, "check_shards", touched)
    flags = [*SCS, "--save_scores", tmp_path / "s.parquet"]
    flags += ["--work_dir", tmp_path / "work"] if work else []
    outcome = in_process(*job.flags(*flags))
    assert_refused(outcome, str(changed), "has changed since this run began to read")
    assert not job.save_path.exists()
    assert not (tmp_path / "s.parquet").exists()


@pytest.mark.parametrize("flag", ["--save_path", "--work_dir"])
def test_a_second_selection_of_one_output_is_refused(tmp_path: Path, flag: str) -> None:
    job = Job(POOL, tmp_path).write(3)
    (tmp_path / "work").mkdir()
    flags = [*SCS, "--work_dir", tmp_path / "work"]
    place = {"--save_path": job.save_path, "--work_dir": tmp_path / "work"}[flag]
    with lock_outputs(place):
        outcome = in_process(*job.flags(*flags))
    assert_refused(outcome, str(place), "is being written by another run")
    assert not job.save_path.exists()
    job.select(*flags)


def test_a_shard_twice_names_both_files(tmp_path: Path) -> None:
    job = Job(POOL, tmp_path).write(3)
    shutil.copy(job.metadata / "part-00001.parquet", job.metadata / "copy.parquet")
    for more in ((), ("--work_dir", tmp_path / "work")):
        outcome = in_process(*job.flags(*SCS, *more))
        assert_refused(
            outcome, "is in the pool twice", "copy.parquet row", "part-00001.parquet row"
        )
