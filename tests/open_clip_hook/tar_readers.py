"""Readers of tars for tests of the hook, and made-up tars."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from datacomp_flyt.open_clip_hook.trainer import find_trainer
from datacomp_flyt.tars.samples import UnreadableShard, read_tar

DATA: Any = find_trainer().data
FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
SIZES = (0, 1, 7, 511, 512, 513, 3_000, 40_000)


def stock(src: Iterator[Any], *args: Any) -> Iterator[Any]:
    """Read samples like the trainer's reader, but close the files."""
    for source in src:
        with contextlib.suppress(UnreadableShard):
            yield from read_tar(source["url"])


def add_member(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    with contextlib.suppress(ValueError):  # a name too long for ustar
        tar.addfile(member, io.BytesIO(content) if member.isreg() else None)


def random_tar(rng: random.Random, tar_format: int, odd: bool) -> bytes:
    """Return a tar of pairs as img2dataset writes them; if odd, with unusual members too."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w|", format=tar_format) as tar:
        for row in range(rng.randint(0, 12)):
            key = f"{row:09d}"
            if odd:
                keys = (
                    "d" * 60 + "/" + "e" * 40 + key,
                    "ünï" + key,
                    "__meta__",
                    "x" * 99,
                    f"{row - 1:09d}",
                )
                key = rng.choice((*keys, *[key] * 15))
                if rng.random() < 0.05:
                    add_member(tar, f"folder{key[:9]}", type=tarfile.DIRTYPE)
                if rng.random() < 0.05:
                    add_member(tar, f"link{key[:9]}", type=tarfile.SYMTYPE, linkname="x")
            for extension in ("jpg", "json", "txt"):
                size = 1_100_000 if rng.random() < 0.01 else rng.choice(SIZES)
                times = (1.5, 7, 1e11) if odd and tar_format == tarfile.PAX_FORMAT else (7,)
                time = rng.choice(times) if odd else rng.choice((1.5, 1700000000.25))
                add_member(tar, f"{key}.{extension}", rng.randbytes(size), mtime=time)
    return file.getvalue()


def outcome(read: Callable[..., Any], url: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return samples, and the type and start of each error, without the stream's address."""
    errors: list[str] = []

    def handler(error: Exception) -> bool:
        text = str(error.args[0]) if error.args else ""
        errors.append(f"{type(error).__name__}: {text.split(' @ ')[0].split('<')[0]}")
        return True

    samples = [
        {k: bytes(v) if isinstance(v, bytes | bytearray) else v for k, v in sample.items()}
        for sample in read([{"url": url}], handler)
    ]
    return samples, errors
