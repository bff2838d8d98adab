"""Embeds one tar of images, in the form of a metadata file of DataComp and the npz beside it.

For `X.tar`, `X.parquet` holds uid, text, original size and CLIP scores, and `X.npz` the unit
features, row by row, of the samples that have a uid, a caption and an image that can be decoded.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datacomp_flyt.clip.encoder import ClipEncoder, LoadedEncoder
from datacomp_flyt.clip.inference import decode_threads, inference, refuse_decompression_bombs
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.tars.pairs import Pair, read_pairs
from datacomp_flyt.tars.samples import Sample, stored_facts


class EmbeddedShard(NamedTuple):
    """The metadata and embeddings of one tar.

    Attributes:
        table: uid, text, original_width, original_height, and for each encoder
            `clip_{prefix}_similarity_score`, float32: the cosine before features were rounded.
        arrays: `{prefix}_img` and `{prefix}_txt` [n, d], unit rows.
        counts: the number of samples that are left out, by reason.
    """

    table: pa.Table
    arrays: dict[str, NDArray[np.floating]]
    counts: Counter[str]


@dataclass(frozen=True)
class EmbedTask:
    """Makes, in each worker, the function from a tar's (name, address) to an `EmbeddedShard`.

    Attributes:
        encoders: the encoders by the prefix of their arrays.
        dtype: the type of the arrays, `float16` or `float32`.
        precision: `fp32` or `bf16`.
        batch_size: images in a batch.
        threads: decoding threads; None for the choice of `inference.decode_threads`.
        make_uids: see `read_pairs`.
    """

    encoders: dict[str, ClipEncoder]
    dtype: str
    precision: str
    batch_size: int
    threads: int | None
    make_uids: bool = False

    def __call__(self, device: str) -> Callable[[tuple[str, str]], EmbeddedShard]:
        """Load the models to a device, and return the function.

        Raises:
            InputError: see `ClipEncoder.load`.
        """
        refuse_decompression_bombs()
        loaded = {prefix: encoder.load(device) for prefix, encoder in self.encoders.items()}
        return lambda item: _embed(item[1], loaded, self, torch.device(device))


def _embed(
    shard: str, encoders: dict[str, LoadedEncoder], task: EmbedTask, device: torch.device
) -> EmbeddedShard:
    """Embed a tar. Raises InputError where `read_pairs` does."""
    counts: Counter[str] = Counter()
    threads = decode_threads(task.threads, device)
    rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    arrays: dict[str, list[NDArray[np.floating]]] = {}
    scores: dict[str, list[NDArray[np.float32]]] = {}
    for prefix, encoder in encoders.items():
        empty = np.empty((0, encoder.width), task.dtype)
        arrays |= {f"{prefix}_img": [empty], f"{prefix}_txt": [empty]}
        scores[f"clip_{prefix}_similarity_score"] = [np.empty(0, np.float32)]

    def transform(image: Image.Image) -> tuple[tuple[int, int], list[Tensor]]:
        return image.size, [encoder.transform(image) for encoder in encoders.values()]

    pairs = read_pairs(shard, transform, task.batch_size, threads, counts, task.make_uids)
    with contextlib.closing(pairs):
        for batch in pairs:
            usable = [(pair, pair.image) for pair in batch if pair.image is not None]
            if not usable:
                continue
            for pair, (size, _) in usable:
                _append(rows, pair, size)
            texts = [pair.text for pair, _ in usable]
            for index, (prefix, encoder) in enumerate(encoders.items()):
                images = torch.stack([tensors[index] for _, (_, tensors) in usable]).to(device)
                with inference(device, task.precision):
                    img, txt = encoder.features(images, encoder.tokenize(texts).to(device))
                    cosines = (img * txt).sum(1)
                scores[f"clip_{prefix}_similarity_score"].append(cosines.cpu().numpy())
                for name, features in ((f"{prefix}_img", img), (f"{prefix}_txt", txt)):
                    arrays[name].append(features.cpu().numpy().astype(task.dtype))
    columns = {name: pa.array(rows[name], kind) for name, kind in _COLUMNS.items()}
    columns |= {name: pa.array(np.concatenate(parts)) for name, parts in scores.items()}
    joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
    return EmbeddedShard(pa.table(columns), joined, counts)


_COLUMNS = {
    "uid": pa.string(),
    "text": pa.string(),
    "original_width": pa.int64(),
    "original_height": pa.int64(),
}


def _append(rows: dict[str, list[Any]], pair: Pair[Any], size: tuple[int, int]) -> None:
    width, height = _original_size(pair.sample) or size
    for name, value in zip(_COLUMNS, (pair.uid, pair.text, width, height), strict=True):
        rows[name].append(value)


def _original_size(sample: Sample) -> tuple[int, int] | None:
    """Return the size before img2dataset resized the image; None if the json has none."""
    stored = stored_facts(sample)
    width, height = stored.get("original_width"), stored.get("original_height")
    if type(width) is int and type(height) is int:
        return width, height
    return None


def write_embedded(folder: Path, name: str, shard: EmbeddedShard) -> None:
    """Write the npz and then the parquet file, so that a parquet file always has its npz.

    Raises:
        InputError: a file cannot be written.
    """
    with atomic_write(folder / f"{name}.npz") as file:
        np.savez(file, **shard.arrays)  # type: ignore[arg-type]  # NumPy's stub: allow_pickle
    with atomic_write(folder / f"{name}.parquet") as file:
        pq.write_table(shard.table, file)
