"""Shards without a usable sample end the training; the trainer alone would wait forever."""

from __future__ import annotations

import contextlib
import itertools
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")

from torch._utils import ExceptionWrapper

from datacomp_flyt.errors import InputError, NothingUsable, ReadError
from datacomp_flyt.open_clip_hook import subset_reader
from datacomp_flyt.open_clip_hook.first_shards import check_first_shards
from datacomp_flyt.open_clip_hook.subset_reader import SubsetReader, open_subset
from datacomp_flyt.open_clip_hook.tar_blocks import BlockReader
from datacomp_flyt.tars.samples import UnreadableShard, read_tar
from tests.conftest import refusal
from tests.flyt.tars import pair, uid_of, write_tar
from tests.open_clip_hook.made import write_counts
from tests.open_clip_hook.tar_readers import DATA, outcome, random_tar, stock
from tests.scorers.base.unusable_tars import UNUSABLE, write_members

KINDS = list(UNUSABLE)
pytestmark = pytest.mark.usefixtures("closed_streams")


@pytest.fixture(autouse=True)
def _low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset_reader, "_MAX_UNUSABLE", 20)


def forever(*urls: str) -> Iterator[dict[str, str]]:
    """Repeat the shards without end, as `--dataset-resampled` does."""
    return ({"url": url} for url in itertools.cycle(urls))


@pytest.mark.parametrize("kind", KINDS)
def test_first_shards(tmp_path: Path, kind: str) -> None:
    urls = [str(write_members(tmp_path / f"{n}.tar", UNUSABLE[kind]())) for n in range(2)]
    message = refusal(check_first_shards, stock, urls, None, None)
    assert f"no example could be read of {urls[0]} and other shards (2 of 2 were tried)" in message
    assert "seen were" in message or kind == "no extensions"
    good = str(write_tar(tmp_path / "good.tar", [pair(0)]))
    check_first_shards(stock, [*urls, good], None, None)


@pytest.mark.parametrize("with_subset", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_later_shards(tmp_path: Path, kind: str, with_subset: bool) -> None:
    subset = open_subset(write_counts(tmp_path / "s.npy", dict.fromkeys(range(9), 1)))
    bad = str(write_members(tmp_path / "bad.tar", UNUSABLE[kind]()))
    good = str(write_tar(tmp_path / "good.tar", [pair(0)]))
    reader = SubsetReader(stock, subset if with_subset else None, False, False)
    with pytest.raises(NothingUsable, match="of the last 20 shards that a data loader worker"):
        list(reader(forever(bad)))
    with pytest.raises(NothingUsable, match="of all shards that a data loader worker"):
        list(reader([{"url": bad}]))
    mixed = reader(forever(*[bad] * 19, good))
    for _ in range(2):
        assert any(sample.get("txt") == b"caption 0" for sample in mixed)


@pytest.mark.parametrize("kind", ["missing", "empty", "without a member", "cut", "noise", "folder"])
def test_shards_that_give_no_sample_at_all(tmp_path: Path, kind: str) -> None:
    path = write_tar(tmp_path / "0.tar", [pair(0)] if kind == "cut" else [])
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        made = {"empty": b"", "cut": content[:700], "noise": b"x" * 5000}
        path.write_bytes(made.get(kind, content))
    reader = SubsetReader(stock, None, False, False)
    message = refusal(lambda: list(reader(forever(str(path)))))
    assert "no sample of the last 20 shards" in message
    assert "seen were no members" in message


def test_a_subset_without_examples_has_its_own_message(tmp_path: Path) -> None:
    """Whole samples outside the subset do not count as damaged."""
    good = str(write_tar(tmp_path / "good.tar", [pair(0)]))
    bad = str(write_members(tmp_path / "bad.tar", UNUSABLE["images first"]()))
    subset = open_subset(write_counts(tmp_path / "s.npy", {99: 1}))
    reader = SubsetReader(stock, subset, False, False)
    assert "has none of the examples of" in refusal(lambda: list(reader(forever(good, bad))))


def test_empty_captions_where_the_trainer_drops_them(tmp_path: Path) -> None:
    url = str(write_tar(tmp_path / "0.tar", [{**pair(n), "txt": b" \n"} for n in range(3)]))
    assert len(list(SubsetReader(stock, None, False, False)([{"url": url}]))) == 3
    assert "no caption: 3" in refusal(check_first_shards, stock, [url], None, None, True)
    reader = SubsetReader(stock, None, False, True)
    assert "no caption: 60" in refusal(lambda: list(reader(forever(url))))


def samples_of(path: Path) -> list[Any]:
    samples: list[Any] = []
    with contextlib.suppress(UnreadableShard):
        samples.extend(read_tar(str(path)))
    return samples


@pytest.mark.parametrize("seed", range(6))
def test_samples_are_those_of_open_clip(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "0.tar"
    for _ in range(30):
        path.write_bytes(random_tar(rng, tarfile.PAX_FORMAT, odd=True))
        expected = outcome(DATA.tarfile_to_samples_nothrow, str(path))[0]
        assert samples_of(path) == expected == outcome(BlockReader(DATA.__name__), str(path))[0]


@pytest.mark.parametrize(
    "names",
    [
        "a.jpg a.txt a.json a.jpg a.txt a.json",
        "a.jpg a.jpg a.txt a.json",
        "a.jpg a.txt a.json a.json",
        "a.jpg a.JPG a.txt",
        "a.jpg b.jpg a.jpg b.txt",
        "a.x.jpg a.x.jpg a.jpg",
        "a a.jpg .jpg a. a.",
        "d.1/a.jpg d.1/a.txt d.2/a.jpg",
        "a.__bad__ a.jpg b.jpg",
        "a.__key__ a.jpg a.__url__",
        "__x__ a.jpg __x__/b a.txt",
    ],
)
def test_neighbours_of_one_key(tmp_path: Path, names: str) -> None:
    """Two samples of one key stay two samples, and no member is overwritten or dropped."""
    members = [(name, f"{position}".encode()) for position, name in enumerate(names.split())]
    path = write_members(tmp_path / "0.tar", members)
    expected = outcome(DATA.tarfile_to_samples_nothrow, str(path))[0]
    assert samples_of(path) == expected
    assert outcome(BlockReader(DATA.__name__), str(path))[0] == expected


def test_two_pairs_of_one_key_are_two_rows(tmp_path: Path) -> None:
    members = [(f"a.{end}", content) for n in (1, 2) for end, content in pair(n).items()]
    path = write_members(tmp_path / "0.tar", members)
    assert [sample["txt"] for sample in read_tar(str(path))] == [b"caption 1", b"caption 2"]
    subset = open_subset(write_counts(tmp_path / "s.npy", {1: 1, 2: 2}))
    reader = SubsetReader(BlockReader(DATA.__name__), subset, False, False)
    assert len(list(reader([{"url": str(path)}]))) == 3
    assert uid_of(1) != uid_of(2)


@pytest.mark.parametrize("kind", [InputError, NothingUsable, ReadError])
def test_a_workers_message_comes_without_its_traceback(kind: type[InputError]) -> None:
    """torch makes a new exception from the text of the old one, however long that is."""
    message = "a.tar: " + "x" * 1200 + " InputError: the end"
    try:
        raise kind(message)
    except InputError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 3")
    with pytest.raises(kind) as caught:
        wrapped.reraise()
    assert str(caught.value) == message
    assert str(InputError(f"Caught {message}")) == f"Caught {message}"
