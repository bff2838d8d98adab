"""Files of linear classifiers: ours, and the published IN1K- and CC2M-Classifier.pt.

The published ones are state dicts of one `nn.Linear` on OpenAI's ViT-B/32 embeddings: `weight`
[o, d] and `bias` [o], d = 512 for images and 1024 for image and text (FLYT, B.2). The paper does
not say whether o is 1 (a logit) or 2 (a logit for each class); both are read. Our format is
safetensors with the same two, o = 1, and the names of the npz arrays in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.checkpoint_file import read_checkpoint
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.installation import needs_extra

LINEAR_CLASSIFIER_KEY = "datacomp_flyt linear classifier"
"""The key in a safetensors file's metadata that marks the file as a linear classifier of ours."""


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Logits x . weight + bias of the positive class.

    Attributes:
        weight: float32 [d].
        bias: float32 scalar.
        arrays: the npz arrays that it was trained on, in the order of x; None if the file does not
            name them.
    """

    weight: NDArray[np.float32]
    bias: np.float32
    arrays: tuple[str, ...] | None = None

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits [n] of embeddings [n, d]; NaN where a row holds NaN."""
        # einsum sums each row by itself; a BLAS may round by row position and number of threads
        logits: NDArray[np.float32] = np.einsum("ij,j->i", rows, self.weight)
        logits += self.bias
        return logits


def load_classifier(source: str | Path, positive_class: int = 1) -> LinearModel:
    """Load a classifier.

    Args:
        source: a `.safetensors` file of ours; or a `torch.save` file of the published layout, raw
            or under `state_dict`, which is read without torch and without unpickling.
        positive_class: 1 or 0, the row of a `weight` [2, d] that is the positive class; 0 negates
            the logit of a `weight` [1, d].

    Raises:
        InputError: the file cannot be read, or holds no classifier.
    """
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"--classifier {source} is not a file: give IN1K-Classifier.pt, CC2M-Classifier.pt, or "
            "one that datacomp-flyt train_classifier wrote"
        )
    content = read_checkpoint(path, str(path))
    arrays = None if content.metadata is None else _arrays(content.metadata, path)
    return _from_tensors(content.tensors, arrays, positive_class, path)


def save_classifier(model: LinearModel, path: Path) -> None:
    """Write a classifier and the names of its arrays as safetensors, whole or not at all."""
    with needs_extra():
        from safetensors.numpy import save
    tensors = {"weight": model.weight[None], "bias": np.array([model.bias])}
    content = save(tensors, {LINEAR_CLASSIFIER_KEY: json.dumps({"arrays": model.arrays})})
    with atomic_write(path) as file:
        file.write(content)


def _arrays(metadata: Mapping[str, str], path: Path) -> tuple[str, ...]:
    try:
        arrays = json.loads(metadata[LINEAR_CLASSIFIER_KEY])["arrays"]
        if (
            not isinstance(arrays, list)
            or not arrays
            or not all(isinstance(name, str) for name in arrays)
        ):
            raise TypeError(f"arrays {arrays!r}")
        return tuple(arrays)
    except Exception as error:  # JSON raises errors of many types
        raise InputError(
            f"{path} is not a linear classifier of datacomp_flyt ({error!r}): give one that "
            "datacomp-flyt train_classifier wrote"
        ) from None


def _from_tensors(
    tensors: Mapping[str, NDArray[Any]],
    arrays: tuple[str, ...] | None,
    positive_class: int,
    path: Path,
) -> LinearModel:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if (
        weight is None
        or bias is None
        or len(tensors) != 2
        or weight.ndim != 2
        or len(weight) not in (1, 2)
        or not weight.size
        or bias.shape != weight.shape[:1]
    ):
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
        raise InputError(
            f"{path} holds {shapes[:300] or 'no tensors'}, wanted weight [1 or 2, width] and bias "
            "[1 or 2]: it is not a linear classifier"
        )
    if weight.dtype.kind != "f" or bias.dtype.kind != "f":
        raise InputError(
            f"{path} holds weight of {weight.dtype} and bias of {bias.dtype}, wanted floats: it is "
            "not a linear classifier"
        )
    rows = np.column_stack([weight, bias]).astype(np.float64)
    row = rows[1] - rows[0] if len(rows) == 2 else rows[0]
    with np.errstate(over="ignore"):
        row = (row if positive_class else -row).astype(np.float32)
    if not np.isfinite(row).all():
        raise InputError(
            f"{path} has weights that are not finite: fetch it again, or train it again"
        )
    return LinearModel(row[:-1].copy(), row[-1], arrays)
