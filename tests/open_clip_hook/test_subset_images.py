"""Draws of a subset that have an image: from a list, from tables beside the tars, or unknown."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip")

from argparse import Namespace

from datacomp_flyt.open_clip_hook import install_hook
from datacomp_flyt.open_clip_hook.subset_images import count_images
from datacomp_flyt.open_clip_hook.subset_reader import SubsetCounts, open_subset
from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.subset import write_subset
from tests.conftest import hex_uids, refusal, sorted_uids
from tests.tars.made_downloads import Download, write_download, write_shard

Logged = pytest.LogCaptureFixture


@pytest.fixture
def made(tmp_path: Path) -> Download:
    return write_download(tmp_path, 120, 4)


@pytest.fixture
def subset(made: Download) -> SubsetCounts:
    """Return a subset with each example twice."""
    write_subset(made.folder / "s.npy", sorted_uids(made.uids), np.full(120, 2))
    return open_subset(made.folder / "s.npy")


def tars(made: Download) -> list[str]:
    return sorted(map(str, made.shards.glob("*.tar")))


def counted(
    caplog: Logged, subset: SubsetCounts, urls: list[str], available: Available | None = None
) -> tuple[int | None, str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        num_samples = count_images(subset, urls, available, log=True)
        assert count_images(subset, urls, available, log=False) == num_samples
    return num_samples, "\n".join(record.getMessage() for record in caplog.records)


KNOWN = "subset: 240 draws of 120 examples, of which 180 draws have an image"


def test_count_from_a_list(caplog: Logged, made: Download, subset: SubsetCounts) -> None:
    available = Available("--available F", sorted_uids([*made.at_hand, *hex_uids(9, "others")]))
    assert counted(caplog, subset, ["pipe:nothing"], available) == (180, KNOWN)


def test_count_from_tables(caplog: Logged, made: Download, subset: SubsetCounts) -> None:
    assert counted(caplog, subset, tars(made)) == (180, KNOWN)
    half = tars(made)[:2]
    num_samples, log = counted(caplog, subset, half)
    assert num_samples is not None
    assert 0 < num_samples < 180
    assert f"of which {num_samples} draws have an image" in log


def no_table(made: Download) -> None:
    (made.shards / "00000002.parquet").unlink()


def damaged(made: Download) -> None:
    (made.shards / "00000002.parquet").write_text("damaged")


def no_tar(made: Download) -> None:
    (made.shards / "00000002.tar").unlink()


def cut_short(made: Download) -> None:
    os.truncate(made.shards / "00000002.tar", 2000)


def no_uids(made: Download) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(made.shards / "00000002.parquet")
    pq.write_table(table.drop(["uid"]), made.shards / "00000002.parquet")


def no_tables(made: Download) -> None:
    for table in made.shards.glob("*.parquet"):
        table.unlink()


@pytest.mark.parametrize("spoil", [no_table, damaged, no_tar, cut_short, no_uids, no_tables])
def test_count_is_unknown(
    caplog: Logged, made: Download, subset: SubsetCounts, spoil: object
) -> None:
    urls = tars(made)
    spoil(made)  # type: ignore[operator]
    num_samples, log = counted(caplog, subset, urls)
    assert num_samples is None
    assert "subset: 240 draws of 120 examples; how many have an image is not known" in log
    assert "datacomp-flyt available" in log


@pytest.mark.parametrize("url", ["pipe:cat 0.tar", "s3://bucket/0.tar", "http://host/0.tar"])
def test_count_is_unknown_for_addresses(
    caplog: Logged, made: Download, subset: SubsetCounts, url: str
) -> None:
    assert counted(caplog, subset, [*tars(made), url])[0] is None


def test_an_example_in_two_tars_is_read_twice(
    caplog: Logged, made: Download, subset: SubsetCounts
) -> None:
    write_shard(made.shards, 4, made.at_hand[:5], [True] * 5)
    num_samples, log = counted(caplog, subset, tars(made))
    assert num_samples == 190
    assert KNOWN in log
    assert "190 samples are read" in log


def test_no_image_at_all(made: Download) -> None:
    write_subset(made.folder / "s.npy", sorted_uids(hex_uids(9, "others")))
    subset = open_subset(made.folder / "s.npy")
    others = Available("--available F", sorted_uids(made.uids))
    for available in (None, others):
        message = refusal(count_images, subset, tars(made), available, False)
        assert "no example with an image" in message
        assert str(made.folder / "s.npy") in message


def test_a_list_without_a_subset(made: Download) -> None:
    np.save(made.folder / "l.npy", sorted_uids(made.at_hand))
    message = refusal(install_hook, available=made.folder / "l.npy", shuffle_seed=1)
    assert "--available counts the draws of --subset that have an image" in message
    message = refusal(install_hook, available=made.folder / "s.npy", subset=made.folder / "l.npy")
    assert "is no file" in message


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("given", [None, 7])
def test_an_epoch_is_the_draws_that_have_an_image(
    caplog: Logged, made: Download, subset: SubsetCounts, known: bool, given: int | None
) -> None:
    hook = install_hook(subset=made.folder / "s.npy")
    try:
        args = Namespace(train_num_samples=given, dataset_resampled=False, workers=1, world_size=1)
        with caplog.at_level(logging.INFO):
            hook._fit_epoch(args, 180 if known else None)
    finally:
        hook.remove()
    assert args.train_num_samples == (given or (180 if known else 240))
    assert ("that have an image" in caplog.text) == (known and given is None)
