"""Listing, drawing and reading of tar shards, and invalid shards."""

from __future__ import annotations

import gzip
import itertools
import lzma
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("webdataset")

from datacomp_flyt.flyt.shard_reader import (
    UNREADABLE_SHARD,
    ShardReader,
)
from datacomp_flyt.tars import samples as tar_samples
from datacomp_flyt.tars.samples import Sample, Skip, UnreadableShard, read_tar
from datacomp_flyt.tars.shards import Stream, list_shards
from tests.conftest import refusal
from tests.flyt.tars import pair, write_pairs, write_tar


def number_of(sample: Sample) -> int:
    return int(sample["txt"].split()[-1])


def nothing(sample: Sample) -> int:
    raise Skip("not wanted")


def reader(shards: list[str], **options: object) -> ShardReader[int]:
    values: dict[str, object] = {"rng": random.Random(0), "skipped": Counter(), "name": "data"}
    return ShardReader([(shard, number_of) for shard in shards], **(values | options))  # type: ignore


# ------------------------------------------------------------------------------- listing


def test_list_folder_file_braces_and_glob(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path, 4, 1)
    (tmp_path / "notes.txt").write_text("no shard")
    assert list_shards(str(tmp_path), "--shards") == shards
    assert list_shards(shards[2], "--shards") == shards[2:3]
    assert list_shards(f"{tmp_path}/{{00000000..00000003}}.tar", "--shards") == shards
    assert list_shards(f"{tmp_path}/*1.tar", "--shards") == shards[1:2]
    assert list_shards(f"{tmp_path}/*{{2,1}}.tar", "--shards") == [shards[2], shards[1]]


def test_missing_files_of_a_range_are_kept(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2, 1)
    assert len(list_shards(f"{tmp_path}/{{00000000..00000009}}.tar", "--shards")) == 10


def test_addresses_are_left_to_webdataset() -> None:
    assert list_shards("s3://bucket/{08..10}.tar", "--shards") == [
        "s3://bucket/08.tar",
        "s3://bucket/09.tar",
        "s3://bucket/10.tar",
    ]
    (command,) = list_shards("pipe:cat *.tar", "--train_data", commands=True)
    assert command == "pipe:cat *.tar"
    assert isinstance(command, Stream)
    assert "only --train_data" in refusal(list_shards, "pipe:cat *.tar", "--shards")


@pytest.mark.parametrize("where", ["", "none", "none/*.tar", "none/{0..3}.tar", "a{0..3.tar"])
def test_no_shards_is_refused(tmp_path: Path, where: str) -> None:
    message = refusal(list_shards, str(tmp_path / where), "--shards")
    assert message.startswith(f"--shards {tmp_path}")


# ------------------------------------------------------------------------------- one tar


def test_read_tar_and_pipe(tmp_path: Path) -> None:
    (shard,) = write_pairs(tmp_path, 1, 3)
    for url in (shard, Stream(f"pipe:cat {shard}")):
        samples = list(read_tar(url))
        assert [number_of(sample) for sample in samples] == [0, 1, 2]
        assert samples[1]["jpg"] == pair(1)["jpg"]


def test_leaving_a_pipe_half_read_is_no_error(tmp_path: Path) -> None:
    (shard,) = write_pairs(tmp_path, 1, 300)
    samples = read_tar(Stream(f"pipe:cat {shard}"))
    assert number_of(next(samples)) == 0
    samples.close()
    with pytest.raises(StopIteration):
        next(samples)


def test_the_bytes_after_the_last_member_are_read(tmp_path: Path) -> None:
    (shard,) = write_pairs(tmp_path, 1, 2)
    with open(shard, "ab") as file:
        file.write(bytes(1 << 20))
    assert len(list(read_tar(Stream(f"pipe:cat {shard}")))) == 2


@pytest.mark.parametrize("kind", ["missing", "empty", "noise", "cut", "pipe", "no scheme"])
def test_unreadable_tars(tmp_path: Path, kind: str) -> None:
    shard = write_tar(tmp_path / "0.tar", [pair(0), pair(1), {"jpg": bytes(50_000)}])
    content = shard.read_bytes()
    if kind == "missing":
        shard.unlink()
    else:
        shard.write_bytes({"noise": b"x" * 5000, "cut": content[:40_000]}.get(kind, b""))
    streams = {"pipe": f"pipe:cat {shard}.nowhere 2>&-", "no scheme": "abc://x"}
    url = Stream(streams[kind]) if kind in streams else str(shard)
    samples, actual = read_tar(url), []
    with pytest.raises(UnreadableShard) as caught:
        actual.extend(number_of(sample) for sample in samples)
    assert str(caught.value)
    assert list(actual) == ([0] if kind == "cut" else [])


# ------------------------------------------------------------------------------- drawing


def test_shards_are_drawn_uniformly_with_replacement(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path, 10, 1)
    drawn = Counter(itertools.islice(reader(shards), 2000))
    assert set(drawn) == set(range(10))
    chi_square = sum((count - 200) ** 2 / 200 for count in drawn.values())
    assert chi_square < 27.9  # the 99.9% quantile for 9 degrees of freedom
    first = list(itertools.islice(reader(shards), 200))
    assert any(one == other for one, other in itertools.pairwise(first))


def test_skips_are_counted(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path, 1, 4)

    def odd(sample: Sample) -> int:
        if number_of(sample) % 2:
            return number_of(sample)
        raise Skip("even")

    skipped: Counter[str] = Counter()
    items = iter(ShardReader([(shards[0], odd)], random.Random(0), skipped, "data"))
    assert list(itertools.islice(items, 4)) == [1, 3, 1, 3]
    assert skipped == {"even": 4}


def test_a_few_bad_shards_are_skipped_and_counted(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path, 20, 2)
    os.remove(shards[3])
    Path(shards[4]).write_bytes(Path(shards[4]).read_bytes()[:-9000])
    skipped: Counter[str] = Counter()
    actual = set(itertools.islice(reader(shards, skipped=skipped), 1000))
    assert actual.isdisjoint({6, 7})
    assert len(actual) >= 36
    assert 20 < skipped[UNREADABLE_SHARD] < 130


@pytest.mark.parametrize(("num_shards", "bad"), [(1, 1), (4, 1), (30, 8), (300, 120)])
def test_many_bad_shards_stop_training(tmp_path: Path, num_shards: int, bad: int) -> None:
    shards = write_pairs(tmp_path, num_shards, 1)
    for shard in shards[:bad]:
        Path(shard).write_bytes(b"")
    message = refusal(lambda: list(itertools.islice(reader(shards), 20_000)))
    assert "cannot be read" in message
    assert "--max_bad_share above 0.1" in message
    assert str(tmp_path) in message
    allowed = iter(reader(shards, max_bad_share=bad / num_shards))
    if bad < num_shards:
        assert len(list(itertools.islice(allowed, 500))) == 500


def test_shards_with_too_few_examples(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path, 3, 4)
    assert len(list(itertools.islice(reader(shards, needed=12), 100))) == 100
    message = refusal(lambda: list(itertools.islice(reader(shards, needed=13), 1000)))
    assert "3 shards hold 12 usable examples, fewer than the 13" in message


def test_shards_without_usable_examples(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path, 3, 4)
    few = ShardReader([(shard, nothing) for shard in shards], random.Random(0), Counter(), "data")
    assert "no example of its 3 shards can be used (not wanted: " in refusal(next, iter(few))
    many = [(shards[0], nothing)] * 100_000
    lost = ShardReader(many, random.Random(0), Counter(), "data")
    assert "last 200 shards read hold no example that can be used (not wanted: 800)" in refusal(
        next, iter(lost)
    )
    hollow = str(write_tar(tmp_path / "hollow.tar", []))
    assert "they are empty" in refusal(next, iter(reader([hollow])))


def test_a_tar_cut_anywhere_is_unreadable(tmp_path: Path) -> None:
    """Truncation is detected inside a header or padding too, where tarfile stops silently."""
    write_tar(tmp_path / "whole.tar", map(pair, range(3)))
    content = (tmp_path / "whole.tar").read_bytes()
    assert len(list(read_tar(str(tmp_path / "whole.tar")))) == 3
    data = len(content.rstrip(b"\0"))
    for cut in range(0, data, 97):
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        with pytest.raises(UnreadableShard):
            list(read_tar(str(tmp_path / "cut.tar")))


@pytest.mark.parametrize("packer", [gzip, lzma])
def test_a_compressed_tar_of_zeros_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packer: Any
) -> None:
    """A tar whose compression ratio is too high for images is refused during decompression."""
    monkeypatch.setattr(tar_samples, "_LARGEST", 1 << 14)
    zeros = [{**pair(index), "jpg": bytes(1 << 13)} for index in range(40)]
    path = tmp_path / "a.tar.packed"
    path.write_bytes(packer.compress(write_tar(tmp_path / "a.tar", zeros).read_bytes()))
    assert len(list(read_tar(str(tmp_path / "a.tar")))) == 40
    with pytest.raises(UnreadableShard, match="are compressed from") as caught:
        list(read_tar(str(path)))
    packed, unpacked = map(int, re.findall(r"\d+", str(caught.value).replace(",", "")))
    assert unpacked < 32 * packed + (1 << 15)
    noise = [{**pair(n), "jpg": random.Random(n).randbytes(1 << 13)} for n in range(40)]
    path.write_bytes(packer.compress(write_tar(tmp_path / "b.tar", noise).read_bytes()))
    assert len(list(read_tar(str(path)))) == 40
