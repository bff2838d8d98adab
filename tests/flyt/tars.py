"""Builders of small webdataset tars, and transforms with predictable results."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datacomp_flyt.flyt.stream_settings import StreamSettings
from datacomp_flyt.flyt.uid_features import UidFeatures

Sample = Mapping[str, bytes]


def uid_of(index: int) -> str:
    return hashlib.md5(f"tar {index}".encode()).hexdigest()


def jpg(shade: int = 100, size: int = 10, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade, shade, shade)).save(file, kind)
    return file.getvalue()


def pair(index: int) -> dict[str, bytes]:
    """Make an upstream example whose caption and shade identify it."""
    return {
        "jpg": jpg(index % 250),
        "txt": f"caption {index}".encode(),
        "json": json.dumps({"uid": uid_of(index), "key": "other"}).encode(),
    }


def write_tar(path: Path, samples: Iterable[Sample]) -> Path:
    """Write a tar whose keys are consecutive numbers, independent of the uids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"{key:06d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_pairs(folder: Path, shards: int = 5, rows: int = 8) -> list[str]:
    """Write tars of examples 0, 1, 2, ..."""
    parts = [range(start, start + rows) for start in range(0, shards * rows, rows)]
    return [
        str(write_tar(folder / f"{shard:08d}.tar", map(pair, part)))
        for shard, part in enumerate(parts)
    ]


def write_task(
    folder: Path,
    labels: Sequence[int | str],
    class_names: Sequence[str] | None = ("cat", "dog", "owl"),
    templates: Sequence[str] | None = ("a photo of a {c}.", "a {c}"),
    rows: int = 4,
    label_name: str = "cls",
) -> Path:
    """Write a downstream task: tars of `rows` labelled images each."""
    for start in range(0, len(labels), rows):
        samples = [
            {
                "jpg": jpg(),
                label_name: str(label).encode(),
                "txt": f"caption {start + index}".encode(),
            }
            for index, label in enumerate(labels[start : start + rows])
        ]
        write_tar(folder / f"{start:04d}.tar", samples)
    folder.mkdir(parents=True, exist_ok=True)
    if class_names is not None:
        (folder / "classnames.txt").write_text("\n".join(class_names) + "\n")
    if templates is not None:
        path = folder / "zeroshot_classification_templates.txt"
        path.write_text("\n".join(templates) + "\n")
    return folder


def features_of(numbers: Sequence[int]) -> UidFeatures:
    """Make a table in which example n has the features (n, -n)."""
    ordered = sorted(numbers, key=uid_of)
    halves = [(int(uid_of(n)[:16], 16), int(uid_of(n)[16:], 16)) for n in ordered]
    high, low = np.array(halves, np.uint64).T
    values = np.array([(n, -n) for n in ordered], np.float32)
    return UidFeatures(high.copy(), low.copy(), values)


def plain(image: Image.Image) -> Tensor:
    """Convert an image to [3, H, W] with values from 0 to 255."""
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)


def augmented(image: Image.Image) -> Tensor:
    """Add noise from each generator that image transforms use."""
    noise = random.random() + np.random.random()  # noqa: NPY002
    return plain(image) + torch.rand(3, 1, 1) + noise


def tokenize(texts: list[str]) -> Tensor:
    """Tokenize each text to the number at its end, [n, 1]."""
    return torch.tensor([[int(text.split()[-1])] for text in texts])


def settings_of(batch_size: int = 8, num_streams: int = 1, **changes: object) -> StreamSettings:
    values: dict[str, object] = {
        "transform": plain,
        "batch_size": batch_size,
        "num_streams": num_streams,
        "seed": 0,
        "epoch": 0,
        "shuffle_buffer": (20, 10),
    }
    return StreamSettings(**(values | changes))  # type: ignore[arg-type]
