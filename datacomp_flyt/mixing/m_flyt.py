"""M-FLYT's mixing model: the paper's, the published file, or one of ours.

Our own format is safetensors: `weights`, `bias` and, where known, `means` and `stds` (float64),
with the column names as JSON in the file's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.checkpoint_file import read_checkpoint
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.mixing.linear_mixing_model import LinearMixingModel
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS, PUBLISHED_SCORES

PAPER_MODEL = LinearMixingModel(PUBLISHED_COLUMNS, tuple(s.weight for s in PUBLISHED_SCORES))
"""Table 2; the statistics are those of the pool at hand."""

MIXING_MODEL_KEY = "datacomp_flyt linear mixing model"
E_FLYT_KEY = "datacomp_flyt glu head"
"""Keys of a safetensors file's metadata, which tell our two kinds of scoring models apart."""


def load_mixing_model(source: str) -> LinearMixingModel:
    """Load a linear mixing model.

    Args:
        source: `paper` for Table 2; a `.safetensors` file of ours; or a `.pt` file laid out as the
            published `mflyt.pt`: `layers.0.weight` [1, 12] and `layers.0.bias` [1], raw or under
            `state_dict`, in the order of the published columns.

    Raises:
        InputError: no such file, not such a file, or weights of another shape.
    """
    if source == "paper":
        return PAPER_MODEL
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"--scoring_model {source} is not a file: give 'paper', a .safetensors or a .pt file"
        )
    checkpoint = read_checkpoint(path, str(path), lambda name: not name.startswith("clip_model."))
    if checkpoint.metadata is None:
        return _from_published(checkpoint.tensors, path)
    return _from_own(checkpoint.tensors, checkpoint.metadata, path)


def save_mixing_model(model: LinearMixingModel, path: Path) -> None:
    """Write a model, with its statistics, as safetensors."""
    tensors = {"weights": np.array(model.weights), "bias": np.array(model.bias)}
    if model.means is not None and model.stds is not None:
        tensors |= {"means": np.array(model.means), "stds": np.array(model.stds)}
    with needs_extra():
        from safetensors.numpy import save
    # one entry, since safetensors writes several in any order
    about = json.dumps({"columns": model.columns, "standardize": model.standardize})
    with atomic_write(path) as file:
        file.write(save(tensors, {MIXING_MODEL_KEY: about}))


def _from_own(
    tensors: dict[str, NDArray[Any]], entries: dict[str, str], path: Path
) -> LinearMixingModel:
    if E_FLYT_KEY in entries:
        raise _e_flyt(path)
    try:
        metadata = json.loads(entries[MIXING_MODEL_KEY])
        if not isinstance(metadata["columns"], list):
            raise TypeError(f"columns {metadata['columns']!r}")
        if not isinstance(metadata["standardize"], bool):
            raise TypeError(f"standardize {metadata['standardize']!r}")
        columns = tuple(metadata["columns"])
        k = len(columns)
        if not all(isinstance(column, str) for column in columns) or len({*columns}) != k:
            raise InputError(f"{path} has column names that are no text, or one twice")
        if any(tensor.dtype.kind not in "fiu" for tensor in tensors.values()):
            raise TypeError(", ".join(f"{k} of {v.dtype}" for k, v in tensors.items()))
        values = {
            name: tuple(float(value) for value in tensors[name].reshape(-1))
            for name in ("weights", "means", "stds")
            if name in tensors
        }
        if not k or any(len(value) != k for value in values.values()):
            raise InputError(f"{path} has {k} column names and other numbers of weights")
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()) or any(
            std <= 0 for std in values.get("stds", ())
        ):
            raise InputError(f"{path} holds numbers that are not finite, or a std of 0")
        return LinearMixingModel(
            columns,
            values["weights"],
            float(tensors["bias"].reshape(())),
            metadata["standardize"],
            values.get("means"),
            values.get("stds"),
        )
    except InputError:
        raise
    except Exception as error:  # JSON and NumPy raise errors of many types
        raise InputError(f"{path} is not a mixing model of datacomp_flyt ({error!r})") from None


def _from_published(tensors: dict[str, NDArray[Any]], path: Path) -> LinearMixingModel:
    if any(name.startswith("glu_model.") for name in tensors):
        raise _e_flyt(path)
    weight, bias = tensors.get("layers.0.weight"), tensors.get("layers.0.bias")
    wanted = (1, len(PUBLISHED_COLUMNS))
    if weight is None or bias is None or weight.shape != wanted or bias.shape != (1,):
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
        raise InputError(
            f"{path} holds {shapes[:300] or 'no tensors'}, wanted layers.0.weight {list(wanted)} "
            "and layers.0.bias [1]: models of other columns are kept as .safetensors"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError(f"{path} holds weights that are not finite: download it again")
    return LinearMixingModel(
        PUBLISHED_COLUMNS, tuple(float(value) for value in weight[0]), float(bias[0])
    )


def _e_flyt(path: Path) -> InputError:
    return InputError(
        f"{path} is a scoring model of E-FLYT, which scores embeddings: use it with --name e_flyt"
    )
