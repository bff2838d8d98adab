"""`datacomp-flyt available`, and `check` and `report` that read its list."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("webdataset")

from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.subset import write_subset
from tests.cli.commands import run
from tests.conftest import hex_uids, sorted_uids
from tests.tars.made_downloads import Download, write_download, write_shard

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def made(tmp_path: Path) -> Download:
    return write_download(tmp_path, 120, 4)


def make_list(capsys: Capture, made: Download, *flags: object) -> tuple[int, str, str]:
    path = made.folder / "list.npy"
    words = ("available", made.shards, "--save_path", path, "--num_workers", 1, *flags)
    return run(capsys, *words)


def test_a_list(capsys: Capture, made: Download) -> None:
    code, out, err = make_list(capsys, made)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "  4 tars: 4 by the tables beside them, 0 read themselves",
        "  30 rows of the tables are downloads that failed",
        f"saved {made.folder / 'list.npy'}: 90 examples with an image",
    ]
    np.save(made.folder / "wanted.npy", sorted_uids(made.at_hand))
    wanted = (made.folder / "wanted.npy").read_bytes()
    assert (made.folder / "list.npy").read_bytes() == wanted
    assert not list(made.folder.glob("*list.npy?*"))  # no notes, no lock


def test_everything_worth_knowing_is_said(capsys: Capture, made: Download) -> None:
    there = made.at_hand[:3]
    write_shard(made.shards, 7, [*there, *hex_uids(2, "others")], [True] * 5, table=False)
    os.truncate(made.shards / "00000001.tar", 2000)
    (made.shards / "00000002.parquet").write_text("damaged")
    code, out, err = make_list(capsys, made)
    assert (code, out) == (2, "")
    assert "1 of 5 tars cannot be used" in err
    assert "00000001.tar" in err
    assert "--allow_unreadable" in err
    assert not (made.folder / "list.npy").exists()
    assert (made.folder / "list.npy.tars").exists()  # what was read
    code, out, err = make_list(capsys, made, "--allow_unreadable")
    assert (code, err) == (0, "")
    assert "5 tars: 2 by the tables beside them, 3 read themselves" in out
    assert "cannot be used, or not to its end: " in out
    assert re.search(r"[123] uids are there more than once", out)


def test_a_mended_tar(capsys: Capture, made: Download) -> None:
    """After a new download of one tar, only this tar is read, and the list is complete."""
    tar = made.shards / "00000001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:3000])
    assert make_list(capsys, made)[0] == 2
    tar.write_bytes(content)
    assert make_list(capsys, made)[0] == 0
    assert np.load(made.folder / "list.npy").tobytes() == sorted_uids(made.at_hand).tobytes()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("nowhere", "--save_path", "l.npy"), "SHARDS nowhere names no file"),
        (("metadata", "--save_path", "l.npy"), "holds no .tar file"),
        (("shards", "--save_path", "shards"), "is a folder"),
        (("shards", "--save_path", "s3://bucket/l.npy"), "cloud path"),
        (("shards", "--save_path", "l.npy", "--num_workers", "0"), "--num_workers is 0"),
        (("shards/{0..", "--save_path", "l.npy"), "SHARDS shards/{0.."),
        (("shards/{00000000..00000009}.tar", "--save_path", "l.npy"), "6 of 10 tars"),
        (("shards", "--save_path", "shards/00000001.tar"), "the shards"),
        (("shards", "--save_path", "shards/other.parquet"), "the shards"),
    ],
)
def test_no_list(
    capsys: Capture,
    made: Download,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(made.folder)
    code, _, err = run(capsys, "available", *words)
    assert code == 2
    assert named in err
    assert len(err.splitlines()) == 1
    assert not Path("l.npy").exists()


# -------------------------------------------------------------------------------- check


@pytest.fixture
def subset(made: Download) -> Path:
    """Draw each example twice, and ten of those with an image once."""
    uids = sorted_uids(made.uids)
    counts = np.full(120, 2)
    counts[np.flatnonzero(np.isin(uids, sorted_uids(made.at_hand)))[:10]] = 1
    write_subset(made.folder / "s.npy", uids, counts)
    return made.folder / "s.npy"


MISSING = "60 of 230 draws (30 of 120 examples) have no image in"


@pytest.mark.parametrize("way", ["--available", "--shards_dir"])
def test_draws_without_an_image(capsys: Capture, made: Download, subset: Path, way: str) -> None:
    make_list(capsys, made)
    place = made.folder / ("list.npy" if way == "--available" else "shards")
    code, out, err = run(
        capsys, "check", subset, "--metadata_dir", made.folder / "metadata", way, place
    )
    assert (code, err) == (0, "")
    assert f"WARNING: {MISSING} {way} {place}" in out
    assert "all in the pool of 120" in out
    assert out.splitlines()[-1] == "valid"


def test_all_or_none_have_an_image(capsys: Capture, made: Download) -> None:
    make_list(capsys, made)
    known = ("--available", made.folder / "list.npy")
    uids = sorted_uids(made.at_hand)
    write_subset(made.folder / "s.npy", uids)
    code, out, _ = run(capsys, "check", made.folder / "s.npy", *known)
    assert code == 0
    assert "every draw has an image in --available" in out
    assert "WARNING" not in out
    gone = [uid for uid, ok in zip(made.uids, made.there, strict=True) if not ok]
    write_subset(made.folder / "s.npy", sorted_uids(gone))
    code, out, _ = run(capsys, "check", made.folder / "s.npy", *known)
    assert code == 1
    assert "NOT VALID: it has no image at all: 30 of 30 draws (30 of 30 examples)" in out
    code, out, _ = run(capsys, "check", made.folder / "s.npy")
    assert code == 0
    assert "not checked: whether its images are on disk" in out


def test_check_refuses(capsys: Capture, made: Download, subset: Path) -> None:
    make_list(capsys, made)
    both = ("--available", made.folder / "list.npy", "--shards_dir", made.shards)
    for words, named in (
        (both, "leave one out"),
        (("--available", subset), "more than once"),
        (("--available", made.folder / "none.npy"), "is no file"),
        (("--shards_dir", made.folder / "none"), "names no file"),
    ):
        code, _, err = run(capsys, "check", subset, *words)
        assert code == 2
        assert named in err


def test_img2dataset_s_own_tables_as_the_pool(capsys: Capture, made: Download) -> None:
    write_subset(made.folder / "s.npy", sorted_uids(made.at_hand))
    code, out, _ = run(capsys, "check", made.folder / "s.npy", "--metadata_dir", made.shards)
    assert code == 0
    assert "leaving out 30 of 120 rows" in out
    assert "all in the pool of 90 examples, of which they are 100.0%" in out
    write_subset(made.folder / "s.npy", sorted_uids(made.uids))
    code, out, _ = run(capsys, "check", made.folder / "s.npy", "--metadata_dir", made.shards)
    assert code == 1
    assert "has 30 uids that are not in the pool" in out


# ------------------------------------------------------------------------------- report


def report(capsys: Capture, made: Download, *flags: object) -> tuple[str, str]:
    """Return the page's row of the selection, and what was printed."""
    words = ("--metadata_dir", made.folder / "metadata", "--out", made.folder / "out")
    code, out, err = run(
        capsys, "report", *words, "--subset", made.folder / "s.npy", "--num_workers", 1, *flags
    )
    assert (code, err) == (0, "")
    page = (made.folder / "out" / "index.html").read_text()
    (row,) = re.findall(r"</svg>s</th>(<td>.*?</td></tr>)", page)
    return row, out


@pytest.mark.usefixtures("subset")
def test_the_page_says_how_many_draws_have_an_image(capsys: Capture, made: Download) -> None:
    pytest.importorskip("matplotlib")
    make_list(capsys, made)
    assert "<td>230</td><td>not known</td>" in report(capsys, made)[0]
    known = ("--available", made.folder / "list.npy")
    assert "<td>230</td><td>170 (73.9%)</td>" in report(capsys, made, *known)[0]


def test_tables_beside_the_tars_tell_it_too(made: Download, subset: Path) -> None:
    pytest.importorskip("matplotlib")
    from datacomp_flyt.report.selections import draws_with_image, read_selections

    selections = read_selections({"once": str(subset), "again": str(subset)}, 1)
    tars = sorted(map(str, made.shards.glob("*.tar")))
    available = Available("--available F", sorted_uids(made.at_hand))
    assert draws_with_image(selections, None, tars, 1) == [170, 170]
    assert draws_with_image(selections, available, None, 1) == [170, 170]
    assert draws_with_image(selections, available, ["pipe:nothing"], 1) == [170, 170]
    for nothing in (None, [], ["pipe:nothing"]):
        assert draws_with_image(selections, None, nothing, 1) is None
    (made.shards / "00000002.parquet").unlink()
    assert draws_with_image(selections, None, tars, 1) is None


def test_a_report_on_img2dataset_s_tables(capsys: Capture, made: Download) -> None:
    pytest.importorskip("matplotlib")
    write_subset(made.folder / "s.npy", sorted_uids(made.at_hand))
    scores = ("--scores_dir", made.folder / "scores", "--metadata_dir", made.shards)
    _, out = report(capsys, made, *scores)
    assert "leaving out 30 of 120 rows of --metadata_dir" in out
    assert "from 90 image-text pairs" in (made.folder / "out" / "index.html").read_text()
