"""User tables of a partly downloaded pool: misspelled columns, other types, misplaced files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("webdataset")

from tests.baselines_plugin.job import assert_refused, in_process
from tests.cli.commands import run
from tests.conftest import write_files, write_parquet
from tests.tars.made_downloads import Download, write_download

Capture = pytest.CaptureFixture[str]
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def made(tmp_path: Path) -> Download:
    return write_download(tmp_path, 60, 3)


def select(made: Download, *more: object, metadata: str = "metadata") -> Any:
    flags = (
        "--name",
        "top_fraction",
        "--column",
        "vit-l-14",
        "--fraction",
        0.5,
        "--num_workers",
        1,
    )
    paths = ("--metadata_dir", made.folder / metadata, "--save_path", made.folder / "s.npy")
    ended = in_process(*map(str, (*flags, *paths, *more)))
    assert (made.folder / "s.npy").exists() == (ended.code == 0)
    return ended


def change(folder: Path, change: Change) -> None:
    for path in folder.glob("*.parquet"):
        pq.write_table(change(pq.read_table(path)), path)


def retyped(name: str, dtype: pa.DataType) -> Change:
    def change(table: pa.Table) -> pa.Table:
        index = table.column_names.index(name)
        return table.set_column(index, name, table[name].cast(dtype))

    return change


def renamed(name: str, other: str) -> Change:
    return lambda table: table.rename_columns(
        [other if column == name else column for column in table.column_names]
    )


@pytest.mark.parametrize("spelled", ["Status", "STATUS", "sTatus"])
@pytest.mark.parametrize(
    ("value", "beside"), [("success", True), ("failed", False), (200, False), (None, True)]
)
def test_a_status_column_with_other_spelling_is_refused(
    made: Download, spelled: str, value: object, beside: bool
) -> None:
    """Such a column may list failed downloads, so it is refused and not ignored."""

    def add(table: pa.Table) -> pa.Table:
        if beside:
            table = table.append_column("status", pa.array(["success"] * len(table)))
        return table.append_column(spelled, pa.array([value] * len(table)))

    change(made.folder / "metadata", add)
    assert_refused(select(made), f"column {spelled!r} of type", "part-0000", "'success'")


@pytest.mark.parametrize("spelled", ["UID", "Uid", "uId"])
@pytest.mark.parametrize("folder", ["metadata", "scores"])
def test_a_uid_column_with_other_spelling_is_refused(
    made: Download, spelled: str, folder: str
) -> None:
    change(made.folder / folder, renamed("uid", spelled))
    scores = ("--scores_dir", made.folder / "scores")
    assert_refused(select(made, *scores), f"{folder}/part-0000", f"rename {spelled!r}")


@pytest.mark.parametrize("spelled", ["VIT-L-14", "vit_l_14", "ViT L/14"])
def test_another_spelling_in_another_file_is_reported(made: Download, spelled: str) -> None:
    first, _ = sorted((made.folder / "scores").glob("*.parquet"))
    pq.write_table(renamed("vit-l-14", spelled)(pq.read_table(first)), first)
    ended = select(made, "--scores_dir", made.folder / "scores", "--allow_partial_scores")
    assert f"(1 file; {first} has {spelled!r}, which is not read)" in ended.stdout


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.binary(), pa.float64()], ids=str)
@pytest.mark.parametrize("folder", ["keyed", "shards"])
def test_keys_that_are_not_text_are_refused(made: Download, kind: pa.DataType, folder: str) -> None:
    tables = [pq.read_table(path) for path in sorted(made.shards.glob("*.parquet"))]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    write_files(made.folder / "keyed", {"uid": keys, "vit-l-14": [0.5] * 60})
    change(made.folder / "keyed", renamed("uid", "key"))
    flags = ("--scores_dir", made.folder / "keyed", "--shards_dir", made.shards)
    assert select(made, *flags).code == 0
    (made.folder / "s.npy").unlink()
    change(made.folder / folder, retyped("key", kind))
    assert_refused(select(made, *flags), f"/{folder}/", f"column 'key' of type {kind}")


def test_keys_of_tables_of_other_tars_are_refused(made: Download) -> None:
    """Two downloads have the same keys, and different uids."""
    paths = sorted(made.shards.glob("*.parquet"))
    tables = [pq.read_table(path) for path in paths]
    uids = [table["uid"] for table in tables]
    for path, table, others in zip(paths, tables, [*uids[1:], uids[0]], strict=True):
        pq.write_table(table.set_column(0, "uid", others), path)
    keys = [key for table in tables for key in table["key"].to_pylist()]
    (made.folder / "keyed").mkdir()
    write_parquet(made.folder / "keyed" / "k.parquet", {"key": keys, "vit-l-14": [0.5] * 60})
    flags = ("--scores_dir", made.folder / "keyed", "--shards_dir", made.shards)
    assert_refused(select(made, *flags), f"{paths[0]} is not the table of", "first uid")


def test_tars_without_a_table_are_reported_if_keys_join(made: Download) -> None:
    first, *others = sorted(made.shards.glob("*.parquet"))
    keys = [key for path in others for key in pq.read_table(path)["key"].to_pylist()]
    first.unlink()
    (made.folder / "keyed").mkdir()
    write_parquet(made.folder / "keyed" / "k.parquet", {"key": keys, "vit-l-14": [0.5] * 40})
    flags = ("--scores_dir", made.folder / "keyed", "--shards_dir", made.shards)
    ended = select(made, *flags, "--allow_partial_scores")
    assert ended.code == 0
    assert "40 keys of 2 tables join scores to uids (1 tars have no table beside" in ended.stdout


def test_metadata_and_shards_in_one_folder_are_refused(made: Download) -> None:
    for path in (made.folder / "metadata").iterdir():
        shutil.copy(path, made.shards)
    ended = select(made, "--shards_dir", made.shards, metadata="shards")
    assert_refused(ended, "in the pool twice", "part-0000", "folders of their own")


def swap_tables(shards: Path) -> None:
    """Move each table to another tar."""
    paths = sorted(shards.glob("*.parquet"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)


SPOILT: dict[str, Callable[[Path], None]] = {
    "no status": lambda shards: change(shards, lambda table: table.drop(["status"])),
    "Status": lambda shards: change(shards, renamed("status", "Status")),
    "another tar's": swap_tables,
    "all rows failed": lambda shards: change(
        shards, lambda t: t.set_column(2, "status", pa.array(["failed"] * len(t)))
    ),
    "no row": lambda shards: change(shards, lambda table: table.slice(0, 0)),
    "a status of numbers": lambda shards: change(
        shards, lambda t: t.set_column(2, "status", pa.array([200] * len(t)))
    ),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_table_that_does_not_fit_its_tar_is_not_used(
    made: Download, capsys: Capture, spoil: Callable[[Path], None]
) -> None:
    words = ("available", made.shards, "--num_workers", 1, "--save_path")
    run(capsys, *words, made.folder / "expected.npy")
    spoil(made.shards)
    code, out, _ = run(capsys, *words, made.folder / "list.npy")
    assert code == 0
    assert "3 tars: 0 by the tables beside them, 3 read themselves" in out
    expected = (made.folder / "expected.npy").read_bytes()
    assert (made.folder / "list.npy").read_bytes() == expected


def test_a_tar_of_zeros_is_empty_whatever_its_table_lists(made: Download, capsys: Capture) -> None:
    for tar in sorted(made.shards.glob("*.tar"))[1:]:
        tar.write_bytes(b"\0" * 10240)
    words = ("available", made.shards, "--num_workers", 1, "--save_path", made.folder / "l.npy")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "3 tars: 1 by the tables beside them, 2 read themselves" in out


def test_a_report_counts_the_available_draws(made: Download, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    select(made)
    run(capsys, "available", made.shards, "--save_path", made.folder / "list.npy")
    folders = ("--metadata_dir", made.folder / "metadata", "--out", made.folder / "out")
    words = (*folders, "--subset", f"half={made.folder / 's.npy'}", "--num_workers", 1)
    code, out, _ = run(capsys, "report", *words, "--available", made.folder / "list.npy")
    assert code == 0
    assert "of 30 draws have an image" in out
    assert out.startswith("half: ")


@pytest.mark.parametrize("workers", [0, -1])
def test_a_check_refuses_less_than_one_worker(
    made: Download, capsys: Capture, workers: int
) -> None:
    select(made)
    words = (made.folder / "s.npy", "--metadata_dir", made.folder / "metadata")
    code, _, err = run(capsys, "check", *words, "--num_workers", workers)
    assert code == 2
    assert f"--num_workers is {workers}" in err
