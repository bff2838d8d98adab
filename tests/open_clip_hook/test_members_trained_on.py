"""The trainer gets the image and the caption of a sample, and no other member to decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")

from datacomp_flyt.open_clip_hook.subset_reader import SubsetReader
from tests.flyt.tars import jpg, pair, write_tar
from tests.open_clip_hook.tar_readers import stock

OTHERS: dict[str, dict[str, bytes]] = {
    "pickle": {"pyd": b"cos\nsystem\n(S'touch ran'\ntR."},
    "pickle of another ending": {"pickle": b"cos\nsystem\n(S'touch ran'\ntR."},
    "torch": {"pth": b"x"},
    "numpy": {"npy": b"x"},
    "second image": {"png": b"no image"},
    "class": {"cls": b"no number"},
    "message": {"mp": b"x", "cbor": b"x"},
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_members_are_removed(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wds: Any = pytest.importorskip("webdataset")
    monkeypatch.chdir(tmp_path)
    url = str(write_tar(tmp_path / "0.tar", [{**pair(0), **OTHERS[kind]}]))
    reader = SubsetReader(stock, None, False, False)
    decode = wds.decode("pilrgb", handler=wds.ignore_and_continue)
    (sample,) = decode(reader(iter([{"url": url}])))
    assert sorted(name for name in sample if not name.startswith("__")) == ["jpg", "txt"]
    assert not (tmp_path / "ran").exists()


def test_the_image_is_the_one_that_the_trainer_uses(tmp_path: Path) -> None:
    others = {k: v for k, v in pair(0).items() if k != "jpg"}
    url = str(write_tar(tmp_path / "0.tar", [{**others, "webp": b"x", "jpeg": jpg(7)}]))
    (sample,) = SubsetReader(stock, None, False, False)(iter([{"url": url}]))
    assert sample["jpeg"] == jpg(7)
    assert "webp" not in sample
