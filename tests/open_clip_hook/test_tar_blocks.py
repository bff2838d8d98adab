"""Reading tars in blocks: the same samples and the same warnings as the trainer's own reader."""

from __future__ import annotations

import gzip
import random
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("open_clip")
import webdataset

from datacomp_flyt.open_clip_hook import tar_blocks
from datacomp_flyt.open_clip_hook.tar_blocks import BlockReader
from tests.open_clip_hook.tar_readers import DATA, FORMATS, outcome, random_tar

pytestmark = pytest.mark.usefixtures("closed_streams")


def damage(rng: random.Random, tar: bytes) -> bytes:
    """Return a tar that is truncated, compressed, replaced or changed in a few bytes."""
    kind = rng.randrange(5)
    if kind == 0:
        return tar[: rng.randint(0, len(tar))]
    if kind == 1:
        return gzip.compress(tar)
    if kind == 2:
        return rng.randbytes(2_000)
    changed = bytearray(tar)
    for _ in range(rng.randint(1, 3) if tar else 0):
        offset = rng.randrange(len(changed))
        if kind == 4:  # often within a header
            offset = offset // 512 * 512 + rng.randrange(512)
        changed[min(offset, len(changed) - 1)] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(8))
def test_samples_are_those_of_the_trainers_reader(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "0.tar"
    read, num_samples, num_errors = BlockReader(DATA.__name__), 0, 0
    for repeat in range(40):
        # pax headers with fractions of a second are the usual case
        tar_format = (
            rng.choice((tarfile.PAX_FORMAT, *FORMATS)) if repeat % 2 else tarfile.PAX_FORMAT
        )
        odd = tar_format != tarfile.PAX_FORMAT or rng.random() < 0.6
        tar = random_tar(rng, tar_format, odd)
        path.write_bytes(damage(rng, tar) if rng.random() < 0.6 else tar)
        url = str(path) if rng.random() < 0.8 else f"pipe:cat {path}"
        expected, actual = outcome(DATA.tarfile_to_samples_nothrow, url), outcome(read, url)
        assert actual == expected
        num_samples += len(actual[0])
        num_errors += len(actual[1])
    assert num_samples > 50
    assert num_errors > 3


def test_usual_tars_are_not_read_by_tarfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usual tars are made by webdataset's writer, which img2dataset uses."""
    path = str(tmp_path / "0.tar")
    with webdataset.TarWriter(path) as writer:
        for row in range(30):
            pair = {"jpg": bytes(70_000), "txt": f"caption {row}", "json": {"uid": "0" * 32}}
            writer.write({"__key__": f"{row:09d}", **pair})

    def refuse(*args: object, **named: object) -> None:
        raise AssertionError("tarfile was used")

    expected = outcome(DATA.tarfile_to_samples_nothrow, path)
    monkeypatch.setattr(tar_blocks, "tar_file_iterator", refuse)
    assert outcome(BlockReader(DATA.__name__), path) == expected
    assert len(expected[0]) == 30


def test_a_missing_tar_is_reported_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(random_tar(random.Random(1), tarfile.PAX_FORMAT, odd=False))
    read, errors = BlockReader(DATA.__name__), []
    sources = [{"url": str(tmp_path / "none.tar")}, {"url": str(path)}]
    samples = list(read(iter(sources), lambda error: not errors.append(error)))
    assert len(errors) == 1
    assert samples
