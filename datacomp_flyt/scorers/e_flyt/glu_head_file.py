"""Reads and writes files of E-FLYT's scoring head: ours and the published `flyt.pt`.

Our format is safetensors: `layers.{i}.{w1,w2,w3}.{weight,bias}`, and in the file's metadata the
names of the npz arrays that the head was trained on. The published layout is the state dict of the
whole scoring model: the head under `glu_model.`, and its feature extractor under `clip_model.`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.checkpoint_file import read_checkpoint
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.mixing.m_flyt import E_FLYT_KEY, MIXING_MODEL_KEY
from datacomp_flyt.scorers.e_flyt.glu_head import GluHead

_PREFIX = "glu_model."


def load_glu_head(source: str | Path) -> GluHead:
    """Load a scoring head.

    Args:
        source: a `.safetensors` file of ours, or a `.pt` file in the layout of `flyt.pt`, raw or
            under `state_dict`, of which only the head is read. The features of the latter were made
            from images, so its `arrays` is None.

    Raises:
        InputError: the file cannot be read, or holds no scoring head.
    """
    path = Path(source)
    if not path.is_file():
        raise InputError(f"--scoring_model {source} is not a file: give a .safetensors or .pt file")
    content = read_checkpoint(path, str(path), lambda name: not name.startswith("clip_model."))
    if content.metadata is None:
        return _from_published(content.tensors, path)
    return _from_own(content.tensors, content.metadata, path)


def save_glu_head(head: GluHead, path: Path) -> None:
    """Write a head, with the names of its arrays, as safetensors."""
    with needs_extra():
        from safetensors.numpy import save
    arrays = None if head.arrays is None else list(head.arrays)
    # a single entry, since safetensors writes several in any order
    content = save(head.tensors(), {E_FLYT_KEY: json.dumps({"arrays": arrays})})
    with atomic_write(path) as file:
        file.write(content)


def _from_own(tensors: dict[str, NDArray[Any]], metadata: dict[str, str], path: Path) -> GluHead:
    if MIXING_MODEL_KEY in metadata:
        raise _mixing_model(path)
    try:
        arrays = json.loads(metadata[E_FLYT_KEY])["arrays"]
        if arrays is not None and (
            not isinstance(arrays, list)
            or not arrays
            or not all(isinstance(name, str) for name in arrays)
        ):
            raise TypeError(f"arrays {arrays!r}")
    except Exception as error:  # JSON raises errors of many types
        raise InputError(
            f"{path} is not a scoring head of datacomp_flyt ({error!r}): give one that was saved "
            "by FLYT training"
        ) from None
    return GluHead.from_tensors(tensors, None if arrays is None else tuple(arrays), str(path))


def _from_published(tensors: dict[str, NDArray[Any]], path: Path) -> GluHead:
    head = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_PREFIX)
    }
    if not head and "layers.0.weight" in tensors:
        raise _mixing_model(path)
    return GluHead.from_tensors(head, None, str(path))


def _mixing_model(path: Path) -> InputError:
    return InputError(
        f"{path} is a mixing model, which mixes score columns: use it with --name m_flyt"
    )
