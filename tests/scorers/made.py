"""Small scoring heads and embeddings, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from datacomp_flyt.scorers import GluHead
from tests.mixing import torch_zip

B32 = ("b32_img", "b32_txt")


def made_head(
    width: int = 8,
    hidden: int = 7,
    layers: int = 1,
    seed: int = 0,
    arrays: tuple[str, ...] | None = B32,
) -> GluHead:
    """Weights large enough that the gates are far from linear."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for number in range(layers):
        outputs = 1 if number == layers - 1 else width
        for part, shape in (
            ("w1", (hidden, width)),
            ("w3", (hidden, width)),
            ("w2", (outputs, hidden)),
        ):
            tensors[f"layers.{number}.{part}.weight"] = rng.normal(0, 1.5, shape)
            tensors[f"layers.{number}.{part}.bias"] = rng.normal(0, 0.5, shape[:1])
    return GluHead.from_tensors(tensors, arrays, "a test")


def listed(head: GluHead) -> dict[str, list[Any]]:
    """The weights as the oracle takes them."""
    return {name: tensor.tolist() for name, tensor in head.tensors().items()}


def made_embeddings(
    rows: int, widths: Mapping[str, int] | None = None, seed: int = 1
) -> dict[str, np.ndarray]:
    """float16 rows of a length near 1, as DataComp stores them."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, width in (widths or {"b32_img": 4, "b32_txt": 4}).items():
        values = rng.normal(size=(rows, width))
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        arrays[name] = values.astype(np.float16)
    return arrays


def write_npz(
    folder: Path,
    uids: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    compressed: bool = True,
) -> list[Path]:
    """An npz beside each metadata file, in the row order of that file; row i belongs to uids[i]."""
    place = {uid: row for row, uid in enumerate(uids)}
    paths = []
    for parquet in sorted(folder.glob("*.parquet")):
        rows = [place[uid] for uid in pq.read_table(parquet)["uid"].to_pylist()]
        save = np.savez_compressed if compressed else np.savez
        paths.append(parquet.with_suffix(".npz"))
        save(paths[-1], **{name: values[rows] for name, values in arrays.items()})
    return paths


def flyt_file(
    path: Path, tensors: Mapping[str, np.ndarray], nested: bool = False, prefix: str = "glu_model."
) -> Path:
    """The published layout without torch: the head, and CLIP's weights, here without numbers."""
    program, storages = {}, {}
    for number, (name, values) in enumerate(tensors.items()):
        strides = [int(np.prod(values.shape[axis + 1 :])) for axis in range(values.ndim)]
        kind = torch_zip.KINDS[values.dtype.str]
        program[prefix + name] = torch_zip.tensor(str(number), values.shape, strides, kind=kind)
        storages[str(number)] = np.ascontiguousarray(values)
    program["clip_model.positional_embedding"] = torch_zip.tensor("not there", (77, 512), (512, 1))
    content = torch_zip.state_dict(program)
    if nested:
        content = b"}(" + torch_zip.text("state_dict") + content + b"u"
    return torch_zip.zip_file(path, content, storages)
