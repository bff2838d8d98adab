"""A synthetic pool of image shards like img2dataset's, and a resharded copy of a subset."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

from datacomp_flyt.pool.uids import UID_DTYPE, encode_uids
from datacomp_flyt.tars.samples import read_tar

_DISTINCT_IMAGES = 512
_WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "old",
    "red",
    "house",
    "by",
    "sea",
    "with",
    "two",
    "white",
    "dogs",
    "and",
    "blue",
    "car",
    "for",
    "sale",
    "in",
    "new",
    "york",
    "best",
    "vintage",
    "handmade",
    "wooden",
    "kitchen",
    "table",
    "large",
    "print",
    "summer",
    "dress",
    "women",
    "2021",
    "free",
    "shipping",
]


@dataclass(frozen=True)
class ImagePool:
    """The folder of the tars, their number, and the uids [n] of their examples in order."""

    folder: Path
    shards: int
    uids: NDArray[np.void]

    @property
    def urls(self) -> str:
        """The tars in the format of `--train-data`."""
        return f"{self.folder}/{{{0:08d}..{self.shards - 1:08d}}}.tar"

    @property
    def bytes_on_disk(self) -> int:
        """The total size of the tars."""
        return sum(path.stat().st_size for path in self.folder.glob("*.tar"))


def make_pool(folder: Path, examples: int, shards: int, pixels: int, seed: int) -> ImagePool:
    """Write a pool, or reuse it: square JPEGs, captions of 4 to 15 words, img2dataset's json.

    There are 512 distinct images, each under many uids, since readers depend on sizes only.
    """
    settings = f"{examples} {shards} {pixels} {seed}"
    rng = np.random.default_rng(seed)
    uids = rng.integers(0, 2**64 - 1, 2 * examples, np.uint64, endpoint=True).view(UID_DTYPE)
    pool = ImagePool(folder, shards, uids)
    done = folder / "settings"
    if done.exists() and done.read_text() == settings:
        return pool
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    images = [_image(pixels, rng) for _ in range(_DISTINCT_IMAGES)]
    names = encode_uids(uids).to_pylist()
    for shard, rows in enumerate(np.array_split(np.arange(examples), shards)):
        samples = (
            _sample(f"{shard:05d}{index:04d}", names[row], images[row % len(images)], pixels, rng)
            for index, row in enumerate(rows)
        )
        _write(folder / f"{shard:08d}.tar", samples)
    done.write_text(settings)
    return pool


def reshard(pool: ImagePool, subset: NDArray[np.void], folder: Path, shards: int) -> ImagePool:
    """Copy a subset (without repeats) into tars of its own, as DataComp's resharder does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = set(encode_uids(subset).to_pylist())
    samples = (
        {k: v for k, v in sample.items() if k != "__url__"}
        for shard in range(pool.shards)
        for sample in read_tar(str(pool.folder / f"{shard:08d}.tar"))
        if json.loads(sample["json"])["uid"] in chosen
    )
    per_shard = -(-len(chosen) // shards)
    for shard in range(shards):
        part = (next(samples, None) for _ in range(per_shard))
        _write(folder / f"{shard:08d}.tar", (sample for sample in part if sample is not None))
    return ImagePool(folder, shards, subset)


def write_table(path: Path, column: str, uids: NDArray[np.void], others: int, seed: int) -> None:
    """Write a table of positive numbers for some uids and for `others` random uids."""
    rng = np.random.default_rng(seed)
    unknown_uids = rng.integers(0, 2**64 - 1, 2 * others, np.uint64, endpoint=True).view(UID_DTYPE)
    all_uids = np.concatenate([uids, unknown_uids])
    values = rng.uniform(0.5, 1.5, len(all_uids)).astype(np.float32)
    pq.write_table(pa.table({"uid": encode_uids(all_uids), column: values}), path)


def _image(pixels: int, rng: np.random.Generator) -> bytes:
    """Return a JPEG of smooth colours with some texture; 256 pixels give about 28 kB."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize((pixels, pixels), Image.Resampling.BICUBIC), np.int16)
    texture = rng.normal(0, 9, (pixels, pixels, 1))
    file = io.BytesIO()
    image = Image.fromarray(np.clip(smooth + texture, 0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _sample(
    key: str, uid: str, image: bytes, pixels: int, rng: np.random.Generator
) -> dict[str, Any]:
    caption = " ".join(rng.choice(_WORDS, int(rng.integers(4, 16))))
    exif = {"Image Make": "Canon", "Image Orientation": "Horizontal (normal)"}
    fields = {
        "uid": uid,
        "caption": caption,
        "url": f"https://images.example.org/uploads/2021/07/{uid[:12]}-1024x768.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": pixels,
        "height": pixels,
        "original_width": 1024,
        "original_height": 768,
        "exif": json.dumps(exif),
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    described = json.dumps(fields, indent=4)
    return {"__key__": key, "jpg": image, "txt": caption.encode(), "json": described.encode()}


def _write(path: Path, samples: Iterator[dict[str, Any]]) -> None:
    with TarWriter(str(path), encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
