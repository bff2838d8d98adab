"""Outputs beside inputs, column names that are paths, and notes of runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.cli import main
from datacomp_flyt.demo import POOL as DEMO
from datacomp_flyt.files.output_files import check_notes_path
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.scorers.base.score import score
from tests.conftest import refusal

FilesIn = Callable[[], dict[str, bytes]]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(DEMO, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    os.symlink("shards", "linked")
    np.save("subset.npy", np.array([(1, 2)], "u8,u8"))
    return tmp_path


def ends(*words: object, code: int = 2) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert int(ended.value.code or 0) == code


@pytest.mark.parametrize(
    ("shards", "saved"),
    [
        ("shards/00000000.tar", "shards/00000000.parquet"),
        ("linked/00000000.tar", "shards/00000000.parquet"),
        ("shards/{00000000..00000003}.tar", "linked/00000001.parquet"),
        ("{shards,linked}/00000000.tar", "shards/00000001.parquet"),
        ("*/00000000.tar", "linked/00000000.parquet"),
        ("?hards/*.tar", "shards/new.tar"),
        ("[s]hards/00000000.tar", "shards/00000000.tar"),
    ],
)
def test_a_table_beside_a_tar(
    demo: Path, files_in: FilesIn, capsys: pytest.CaptureFixture[str], shards: str, saved: str
) -> None:
    before = files_in()
    ends("available", shards, "--save_path", saved)
    assert f"--save_path {saved}" in capsys.readouterr().err
    assert files_in() == before
    assert demo.is_dir()


def test_the_table_beside_an_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    output = Output("--out", tmp_path / "a.parquet")
    assert "--positives" in refusal(check_outputs, [output], {"positives": [f"{tmp_path}/a.npz"]})
    check_outputs([Output("--out", tmp_path / "b.parquet")], {"positives": [f"{tmp_path}/a.npz"]})


@pytest.mark.parametrize("name", ["..", ".", "", "_x", ".x", "a/b", "/tmp/x", "a\0b", "uid"])
def test_a_column_that_is_no_folder_of_scores(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {"scores_dir": "s/deep", "metadata_dir": "m"}
    said = refusal(lambda: score("clip_score", column=name, source="npz", **folders))
    assert "is no name of a score" in said
    assert not list(tmp_path.iterdir())


NOTES = [
    ("save", "m.json.hashed.jsonl"),
    ("check", "m.json.checked.jsonl"),
    ("available", "a.npy.tars"),
]


def words(kind: str) -> list[str]:
    if kind == "available":
        return ["available", "shards", "--save_path", "a.npy", "--num_workers", "1"]
    return ["manifest", "metadata", f"--{kind.replace('save', 'save_path')}", "m.json"]


@pytest.mark.parametrize(("kind", "name"), NOTES)
@pytest.mark.parametrize("what", ["link", "link to nothing", "empty link", "text", "json", "pipe"])
def test_notes_are_not_written_into_what_others_made(
    demo: Path, files_in: FilesIn, kind: str, name: str, what: str
) -> None:
    if kind == "check":
        ends("manifest", "metadata", "--save_path", "m.json", code=0)
    if "link" in what:
        if what != "link to nothing":
            (demo / "victim").write_text("precious" if what == "link" else "")
        os.symlink("victim", name)
    elif what == "pipe":
        os.mkfifo(name)
    else:
        (demo / name).write_text('{"mine": 1}\n' if what == "json" else "my own notes\n")
    before = files_in()
    if kind == "check" and what in ("pipe", "link to nothing"):
        with pytest.raises(SystemExit):
            main(words(kind))
    else:
        ends(*words(kind))
    assert files_in() == before
    assert os.path.lexists(name)


def test_notes_of_a_killed_run_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "n"
    for content in (b"", b"\n", b'\n["/x', b'["/x"', b"\n\n\n"):
        path.write_bytes(content)
        assert check_notes_path(path, b'["', b'\n["', b"\n\n") == path


@pytest.mark.parametrize(
    "command",
    [
        "check pipe",
        "check subset.npy --available pipe",
        "manifest metadata --check pipe",
        "manifest metadata --check pipe --fast",
        "report --metadata_dir metadata --subset pipe --out r",
        "check_parts metadata --subset pipe",
        "score --scorer norm_sim --targets pipe --metadata_dir metadata --scores_dir s",
    ],
)
def test_no_pipe_is_opened(demo: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    os.mkfifo("pipe")
    ends(*command.split())
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert demo.is_dir()
