"""Reading tars in blocks: the same samples and the same warnings as the trainer's own reader."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")
import webdataset

from datacomp_flyt.open_clip_hook import tar_blocks
from datacomp_flyt.open_clip_hook.tar_blocks import BlockReader
from datacomp_flyt.open_clip_hook.trainer import find_trainer

DATA: Any = find_trainer().data
FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
SIZES = (0, 1, 7, 511, 512, 513, 3_000, 40_000)


@pytest.fixture(autouse=True)
def _closed_streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trainer leaves closing its files, and waiting for its commands, to others."""
    streams: list[Any] = []
    stock = DATA.url_opener

    def url_opener(*args: Any, **named: Any) -> Iterator[Any]:
        for source in stock(*args, **named):
            streams.append(source["stream"])
            yield source

    monkeypatch.setattr(DATA, "url_opener", url_opener)
    yield
    for stream in streams:
        with contextlib.suppress(OSError):  # of a command whose output was not read to the end
            stream.close()


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    with contextlib.suppress(ValueError):  # a name that ustar has no place for
        tar.addfile(member, io.BytesIO(content) if member.isreg() else None)


def made_tar(rng: random.Random, kind: int, odd: bool) -> bytes:
    """Pairs as img2dataset writes them; where odd, with all that else is seen in tars."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w|", format=kind) as tar:
        for number in range(rng.randint(0, 12)):
            key = f"{number:09d}"
            if odd:
                keys = (
                    "d" * 60 + "/" + "e" * 40 + key,
                    "ünï" + key,
                    "__meta__",
                    "x" * 99,
                    f"{number - 1:09d}",
                )
                key = rng.choice((*keys, *[key] * 15))
                if rng.random() < 0.05:
                    add(tar, f"folder{key[:9]}", type=tarfile.DIRTYPE)
                if rng.random() < 0.05:
                    add(tar, f"link{key[:9]}", type=tarfile.SYMTYPE, linkname="x")
            for extension in ("jpg", "json", "txt"):
                size = 1_100_000 if rng.random() < 0.01 else rng.choice(SIZES)
                times = (1.5, 7, 1e11) if odd and kind == tarfile.PAX_FORMAT else (7,)
                time = rng.choice(times) if odd else rng.choice((1.5, 1700000000.25))
                add(tar, f"{key}.{extension}", rng.randbytes(size), mtime=time)
    return file.getvalue()


def damaged(rng: random.Random, tar: bytes) -> bytes:
    how = rng.randrange(5)
    if how == 0:
        return tar[: rng.randint(0, len(tar))]
    if how == 1:
        return gzip.compress(tar)
    if how == 2:
        return rng.randbytes(2_000)
    changed = bytearray(tar)
    for _ in range(rng.randint(1, 3) if tar else 0):
        place = rng.randrange(len(changed))
        if how == 4:  # within a header, as likely as not
            place = place // 512 * 512 + rng.randrange(512)
        changed[min(place, len(changed) - 1)] = rng.randrange(256)
    return bytes(changed)


def outcome(read: Callable[..., Any], url: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Samples, and what is said of errors: kind and begin, without the stream's address."""
    said: list[str] = []

    def handler(error: Exception) -> bool:
        text = str(error.args[0]) if error.args else ""
        said.append(f"{type(error).__name__}: {text.split(' @ ')[0].split('<')[0]}")
        return True

    samples = [
        {k: bytes(v) if isinstance(v, bytes | bytearray) else v for k, v in sample.items()}
        for sample in read([{"url": url}], handler)
    ]
    return samples, said


@pytest.mark.parametrize("seed", range(8))
def test_like_the_trainers_reader(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "0.tar"
    read, num_samples, num_errors = BlockReader(DATA.__name__), 0, 0
    for number in range(40):
        # pax headers with fractions of a second are the usual case
        kind = rng.choice((tarfile.PAX_FORMAT, *FORMATS)) if number % 2 else tarfile.PAX_FORMAT
        odd = kind != tarfile.PAX_FORMAT or rng.random() < 0.6
        tar = made_tar(rng, kind, odd)
        path.write_bytes(damaged(rng, tar) if rng.random() < 0.6 else tar)
        url = str(path) if rng.random() < 0.8 else f"pipe:cat {path}"
        wanted, found = outcome(DATA.tarfile_to_samples_nothrow, url), outcome(read, url)
        assert found == wanted
        num_samples += len(found[0])
        num_errors += len(found[1])
    assert num_samples > 50
    assert num_errors > 3


def test_usual_tars_never_come_to_tarfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As webdataset's writer makes them, which img2dataset uses."""
    path = str(tmp_path / "0.tar")
    with webdataset.TarWriter(path) as writer:
        for number in range(30):
            pair = {"jpg": bytes(70_000), "txt": f"caption {number}", "json": {"uid": "0" * 32}}
            writer.write({"__key__": f"{number:09d}", **pair})

    def refuse(*args: object, **named: object) -> None:
        raise AssertionError("given to tarfile")

    wanted = outcome(DATA.tarfile_to_samples_nothrow, path)
    monkeypatch.setattr(tar_blocks, "tar_file_iterator", refuse)
    assert outcome(BlockReader(DATA.__name__), path) == wanted
    assert len(wanted[0]) == 30


def test_a_missing_tar_is_said_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(made_tar(random.Random(1), tarfile.PAX_FORMAT, odd=False))
    read, said = BlockReader(DATA.__name__), []
    sources = [{"url": str(tmp_path / "none.tar")}, {"url": str(path)}]
    samples = list(read(iter(sources), lambda error: not said.append(error)))
    assert len(said) == 1
    assert samples
