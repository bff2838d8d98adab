"""Small scoring heads and embeddings, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from datacomp_flyt.scorers import GluHead
from tests.files import torch_zip
from tests.tolerances import float_bound

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


def glu_bound(head: GluHead, rows: np.ndarray, computed: int = 1) -> float:
    """Error of a head's scores in float32.

    A layer is w2 (silu(w1 z + b1) (w3 z + b3)) + b2. |silu(a)| <= |a| and |silu'| <= 1.1, so that
    relative errors of its input and of its two products come 2.1-fold; silu and the product have 8
    roundings. The weights have random signs, so sums are of the size of the root of their terms'
    squares.
    """
    squares = {name: value.astype(float) ** 2 for name, value in head.tensors().items()}
    magnitude, terms, layer = rows.astype(float) ** 2, 0.0, 0
    while f"layers.{layer}.w1.weight" in squares:
        w1, w2, w3 = (squares[f"layers.{layer}.{name}.weight"] for name in ("w1", "w2", "w3"))
        b1, b2, b3 = (squares[f"layers.{layer}.{name}.bias"] for name in ("w1", "w2", "w3"))
        magnitude = ((magnitude @ w1.T + b1) * (magnitude @ w3.T + b3)) @ w2.T + b2
        terms = 2.1 * (terms + w1.shape[1] + 1) + 8 + w2.shape[1] + 1
        layer += 1
    return float_bound("float32", magnitude.max() ** 0.5, terms, computed)
