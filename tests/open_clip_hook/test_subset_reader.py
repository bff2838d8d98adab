"""Subsets read from the original shards: copies, skipped samples, and messages."""

from __future__ import annotations

import gc
import logging
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.first_shards import check_first_shards
from datacomp_flyt.open_clip_hook.log_weights import read_weights
from datacomp_flyt.open_clip_hook.subset_reader import StockReader, SubsetReader, open_subset
from datacomp_flyt.open_clip_hook.tar_blocks import BlockReader
from datacomp_flyt.open_clip_hook.trainer import find_trainer
from tests.flyt.tars import pair, uid_of, write_pairs, write_tar
from tests.open_clip_hook.made import write_counts, write_table
from tests.open_clip_hook.tar_readers import stock


def read(urls: list[str], counts: Path | None, carries_uids: bool = False) -> list[Any]:
    subset = None if counts is None else open_subset(counts)
    reader = SubsetReader(stock, subset, carries_uids, drops_empty_captions=False)
    return list(reader({"url": url} for url in urls))


def captions(samples: list[Any]) -> list[str]:
    return [sample["txt"].decode() for sample in samples]


def test_each_example_is_read_as_often_as_it_is_drawn(tmp_path: Path) -> None:
    urls = write_pairs(tmp_path, shards=3, rows=4)
    counts = write_counts(tmp_path / "s.npy", {1: 2, 5: 1, 10: 3, 99: 7})
    actual = captions(read(urls, counts))
    assert actual == [f"caption {n}" for n in (1, 1, 5, 10, 10, 10)]


def test_copies_are_independent(tmp_path: Path) -> None:
    """A later stage may change one copy without changing the other."""
    urls = write_pairs(tmp_path, shards=1, rows=2)
    first, second = read(urls, write_counts(tmp_path / "s.npy", {1: 2}))
    first["txt"] = b"changed"
    assert second["txt"] == b"caption 1"


def test_uids_are_prepended_to_captions(tmp_path: Path) -> None:
    urls = write_pairs(tmp_path, shards=1, rows=3)
    assert captions(read(urls, None, carries_uids=True)) == [
        f"{uid_of(n)}caption {n}" for n in range(3)
    ]
    assert captions(read(urls, None)) == [f"caption {n}" for n in range(3)]


@pytest.mark.parametrize("drops", [False, True])
def test_empty_captions(drops: bool, tmp_path: Path) -> None:
    """A trainer that drops empty captions must still see them as empty."""
    samples = [{**pair(0), "txt": b" "}, {k: v for k, v in pair(1).items() if k != "txt"}, pair(2)]
    url = str(write_tar(tmp_path / "0.tar", samples))
    reader = SubsetReader(stock, None, carries_uids=True, drops_empty_captions=drops)
    first, second, _ = reader(iter([{"url": url}]))
    assert first["txt"] == (b" " if drops else f"{uid_of(0)} ".encode())
    assert "txt" not in second


BAD = [
    None,
    b"{}",
    b"no json",
    b'{"uid": 5}',
    b"[1]",
    b'{"uid": ""}',
    b'{"uid": "%s"}' % (b"a" * 30),
]


@pytest.mark.parametrize("json", BAD)
def test_an_example_without_uid_is_skipped(
    json: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {k: v for k, v in {**pair(1), "json": json}.items() if v is not None}
    url = str(write_tar(tmp_path / "0.tar", [pair(0), broken, pair(2)]))
    with caplog.at_level(logging.WARNING):
        assert captions(read([url], None)) == ["caption 0", "caption 2"]
    assert f"{url}: example 000001 has no uid in its json" in caplog.text


def test_a_pass_without_any_example_stops(tmp_path: Path) -> None:
    urls = write_pairs(tmp_path, shards=2, rows=2)
    counts = write_counts(tmp_path / "s.npy", {99: 1})
    with pytest.raises(InputError, match=r"--subset .*s.npy has none of the examples of all shard"):
        read(urls, counts)


def test_an_endless_source_stops_after_a_thousand_unusable_shards(tmp_path: Path) -> None:
    urls = write_pairs(tmp_path, shards=2, rows=1)
    counts = open_subset(write_counts(tmp_path / "s.npy", {99: 1}))
    reader = SubsetReader(stock, counts, False, False)
    with pytest.raises(InputError, match="none of the examples of the last 1,000 shards"):
        list(reader({"url": urls[row % 2]} for row in range(10_000)))


def test_first_shards_are_accepted(tmp_path: Path) -> None:
    urls = ["missing.tar", *write_pairs(tmp_path, shards=5, rows=3)]
    weights = read_weights(
        write_table(tmp_path / "w.parquet", {"uid": [0, 1, 2, 8], "w": [1.0, 1.0, 2.0, 2.0]}),
        None,
        None,
    )
    check_first_shards(stock, urls, None, weights)
    check_first_shards(stock, urls, open_subset(write_counts(tmp_path / "s.npy", {8: 1})), weights)


def test_first_shards_are_refused(tmp_path: Path) -> None:
    urls = write_pairs(tmp_path, shards=5, rows=4)
    late = open_subset(write_counts(tmp_path / "s.npy", {12: 1}))
    with pytest.raises(InputError, match=r"none of the examples of 00000000.tar, .*, 00000002.tar"):
        check_first_shards(stock, urls, late, None)
    table = write_table(tmp_path / "w.parquet", {"uid": [0, 1, 3], "w": [1.0, 1.0, 2.0]})
    weights = read_weights(table, None, None)
    with pytest.raises(InputError, match=r"lacks 1 of the first 4 examples of .*00.tar \(25.0%"):
        check_first_shards(stock, urls, None, weights)
    with pytest.raises(
        InputError, match=r"could be read of missing.tar and .* \(1 of 1 were tried"
    ):
        check_first_shards(stock, ["missing.tar"], late, None)
    with pytest.raises(InputError, match=r"\(20 of 12,896 were tried\)"):
        check_first_shards(stock, ["missing.tar"] * 12_896, late, None)


def test_only_examples_of_the_subset_need_weights(tmp_path: Path) -> None:
    urls = write_pairs(tmp_path, shards=3, rows=4)
    subset = open_subset(write_counts(tmp_path / "s.npy", {5: 1, 6: 2, 11: 1}))
    table = write_table(tmp_path / "w.parquet", {"uid": [5, 6, 11], "w": [1.0, 1.0, 2.0]})
    weights = read_weights(table, None, None)
    check_first_shards(stock, urls, subset, weights)
    with pytest.raises(InputError, match="lacks 4 of the first 4"):
        check_first_shards(stock, urls, None, weights)


def test_the_checked_shards_are_spread_over_the_list(tmp_path: Path) -> None:
    """The list may name the shards of several pools, one pool after the other."""
    urls = write_pairs(tmp_path, shards=2, rows=1)
    subset = open_subset(write_counts(tmp_path / "s.npy", {1: 1}))
    check_first_shards(stock, [urls[0]] + ["none.tar"] * 98 + [urls[1]] * 30, subset, None)


def test_the_reader_can_be_pickled_for_a_spawned_worker(tmp_path: Path) -> None:
    """The pickled reader finds the trainer's functions by name."""
    data: Any = find_trainer().data
    urls = write_pairs(tmp_path, shards=2, rows=4)
    subset = open_subset(write_counts(tmp_path / "s.npy", {1: 2, 5: 1}))
    for read in (BlockReader(data.__name__), StockReader(data.tarfile_to_samples_nothrow)):
        reader = SubsetReader(read, subset, carries_uids=False, drops_empty_captions=True)
        copied = ForkingPickler.loads(ForkingPickler.dumps(reader))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of the trainer's open files
            assert captions(copied(iter({"url": url} for url in urls))) == [
                "caption 1",
                "caption 1",
                "caption 5",
            ]
            gc.collect()


def test_shards_without_uids(tmp_path: Path) -> None:
    bare = [{"jpg": pair(n)["jpg"], "txt": b"a"} for n in range(10)]
    url = str(write_tar(tmp_path / "0.tar", bare))
    with pytest.raises(InputError, match=r"0.tar: example 000009 has no json beside its image"):
        check_first_shards(stock, [url], None, None)
    url = str(write_tar(tmp_path / "1.tar", [{**sample, "json": b"{}"} for sample in bare]))
    with pytest.raises(
        InputError, match=r"1.tar: example 000009 has no uid in its json, as have 10"
    ):
        check_first_shards(stock, [url], None, None)
    url = str(write_tar(tmp_path / "2.tar", bare[:3]))
    with pytest.raises(InputError, match="no example could be read"):
        check_first_shards(stock, [url], None, None)
