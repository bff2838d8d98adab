"""The pictures of a report: the examples that are shown and the tars that are opened."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.report import examples
from datacomp_flyt.report.examples import choose_examples, find_candidates, read_pictures
from datacomp_flyt.tars import samples as tar_samples
from datacomp_flyt.tars.samples import Sample, read_tar
from tests.conftest import refusal
from tests.report.made import jpeg, make_captioned_pool, write_tar, write_tars

POOL = make_captioned_pool(60)
FLAG = "--shards_dir T"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tars that were opened, in order."""
    names: list[str] = []

    def read(url: str, *seen: Any) -> Iterator[Sample]:
        names.append(Path(url).name)
        return read_tar(url, *seen)

    for module in (examples, tar_samples):
        monkeypatch.setattr(module, "read_tar", read)
    return names


def test_groups_are_the_most_drawn_the_median_and_the_rejected() -> None:
    counts = np.array([0, 5, 1, 2, 0, 1, 5, 0, 1, 0, 3])
    scores = np.array([9.0, 1, 2, 3, 8, 1, 2, 1, 0, np.nan, 4])
    groups = choose_examples(counts, scores, 2)
    assert groups["top"].tolist() == [6, 1]  # 5 draws each, the higher score first
    assert groups["middle"].tolist() == [10, 3]  # of 6 1 10 3 2 5 8
    assert groups["rejected"].tolist() == [0, 9]  # from the highest score to none


def test_no_example_is_shown_twice() -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        counts = rng.integers(0, 3, number)
        groups = choose_examples(counts, rng.normal(size=number), 8)
        shown = np.concatenate(list(groups.values()))
        assert len(set(shown.tolist())) == len(shown)
        assert len(groups["top"]) == min(8, np.count_nonzero(counts))
        assert len(groups["rejected"]) == min(8, np.count_nonzero(counts == 0))


def test_with_an_index_only_tars_of_shown_examples_are_opened(
    tmp_path: Path, opened: list[str]
) -> None:
    tars = [str(path) for path in write_tars(tmp_path, POOL, 6, index=True)]
    candidates = find_candidates(tars, 4, 0, 2, FLAG)
    assert opened == candidates.opened == []
    assert len(candidates.tars) == 4
    assert len(candidates.uids) == 40  # and none that was not downloaded
    wanted = np.flatnonzero(candidates.tar_of == 2)[[0, 3]]
    pictures, read = read_pictures(candidates, wanted, 2)
    assert opened == [Path(candidates.tars[2]).name]
    assert read == [candidates.tars[2]]
    assert sorted(pictures) == sorted(wanted.tolist())
    caption_of = dict(zip(POOL.uids, POOL.metadata["text"], strict=True))
    for number, uid in zip(wanted.tolist(), encode_uids(candidates.uids[wanted]), strict=True):
        assert pictures[number].caption == caption_of[uid.as_py()]


def test_without_an_index_no_more_than_the_bound_are_opened(
    tmp_path: Path, opened: list[str]
) -> None:
    tars = [str(path) for path in write_tars(tmp_path, POOL, 6, index=False)]
    candidates = find_candidates(tars, 2, 0, 1, FLAG)
    assert len(opened) == 2
    assert candidates.opened == candidates.tars
    assert candidates.all_tars == 6
    assert len(candidates.uids) == 20
    again = find_candidates(tars[::-1], 2, 0, 1, FLAG)
    assert again.tars == candidates.tars
    np.testing.assert_array_equal(again.uids, candidates.uids)


def test_thumbnails_are_small_and_keep_their_shape(tmp_path: Path) -> None:
    tars = [str(path) for path in write_tars(tmp_path, POOL, 1, index=True)]
    pictures, _ = read_pictures(find_candidates(tars, 1, 0, 1, FLAG), np.array([4]), 1)
    picture = pictures[4]
    assert picture.image is not None
    kind, data = picture.image.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (picture.width, picture.height) == (160, 80)


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    uids = sorted(POOL.uids[:3])
    about = [f'{{"uid": "{uid}"}}'.encode() for uid in uids]
    broken = {"jpg": b"no picture", "txt": b"broken", "json": about[0]}
    bare = {"txt": b"bare", "json": about[1]}
    mute = {"jpg": jpeg(1), "json": about[2]}
    write_tar(tmp_path / "0.tar", [("0", broken), ("1", bare), ("2", mute)])
    candidates = find_candidates([str(tmp_path / "0.tar")], 1, 0, 1, FLAG)
    pictures, _ = read_pictures(candidates, np.arange(3), 1)
    assert [pictures[n].problem for n in range(3)] == [
        "image cannot be decoded",
        "no image",
        None,
    ]
    assert [pictures[n].caption for n in range(3)] == ["broken", "bare", ""]


def test_a_tar_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    whole, cut = write_tars(tmp_path, POOL, 2, index=False)
    cut.write_bytes(cut.read_bytes()[:20_000])
    candidates = find_candidates([str(whole), str(cut)], 2, 0, 1, FLAG)
    assert 30 < len(candidates.uids) < 60
    assert len(candidates.unreadable) == 1
    assert str(cut) in candidates.unreadable[0]


def test_no_usable_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"\1" * 2000)
    assert "no example with a uid" in refusal(
        find_candidates, [str(tmp_path / "bad.tar")], 3, 0, 1, FLAG
    )
    write_tar(tmp_path / "odd.tar", [("0", {"jpg": jpeg(0), "json": b'{"uid": "7"}'})])
    assert "holds the uid '7'" in refusal(
        find_candidates, [str(tmp_path / "odd.tar")], 3, 0, 1, FLAG
    )
