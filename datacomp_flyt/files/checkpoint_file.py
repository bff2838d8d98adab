"""Reads model files (`torch.save` and .safetensors) for all commands.

A file's kind is recognised by its content, whatever its name. No code in a file is ever run; a
file that cannot be read is refused with a sentence that says what it is and what to do.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError, first_line, unreadable
from datacomp_flyt.files.state_dict import unwrapped_names
from datacomp_flyt.files.torch_file import (
    MAGIC_AS_TEXT,
    from_bfloat16,
    read_torch_file,
    read_torch_object,
)
from datacomp_flyt.files.torch_pickle import TorchFileError
from datacomp_flyt.installation import needs_extra

Array = NDArray[Any]

_HEAD = 512
_LONGEST_HEADER = 100_000_000  # of the safetensors library
_OTHER_KINDS = (
    (rb"version https://git-lfs", "a git-lfs pointer, not the file itself: run git lfs pull"),
    (rb"\s*<(?:!doctype|html|\?xml|head|!--)", "a web page, such as a login or an error: fetch it "
     "again, and look at the address"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf", "compressed: unpack it first"),
    (rb".{257}ustar", "a tar archive: unpack it, and name the checkpoint inside"),
    (rb"\x93NUMPY", "a NumPy array: give a file of torch.save or .safetensors"),
    (rb"\x89HDF", "an HDF5 file: give a file of torch.save or .safetensors"),
    (rb"GGUF", "a GGUF file: give a file of torch.save or .safetensors"),
)  # fmt: skip
_DISTRIBUTED = (
    "it is a folder of torch.distributed.checkpoint: make one file of it by python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict.

    Attributes:
        tensors: arrays by the model's own names, without the prefixes of wrappers.
        metadata: text entries of a .safetensors file; None for a torch file, which has none.
    """

    tensors: dict[str, Array]
    metadata: dict[str, str] | None


def read_checkpoint(
    path: Path, label: str, wanted: Callable[[str], bool] = lambda name: True
) -> Checkpoint:
    """Read the state dict of a checkpoint, bfloat16 as float32.

    See `read_torch_file` for the keys of the state dict and the prefixes that are removed.

    Args:
        path: the file.
        label: the flag and the path, for messages.
        wanted: returns whether to read the tensor of a name.

    Raises:
        InputError: there is no such file, or it is no checkpoint that can be read without running
            code.
    """
    with _refusing(label):
        metadata = None
        if _is_safetensors(path):
            tensors, metadata = _read_safetensors(path, wanted)
        else:
            tensors = read_torch_file(path, wanted)
        for name, array in tensors.items():
            if array.dtype.kind not in "fib" and array.dtype != np.uint8:
                raise TorchFileError(f"its {name} is of {array.dtype}: save it as float32")
        return Checkpoint(tensors, metadata)


def read_content(path: Path, label: str, make: Callable[[Array], Any] = lambda array: array) -> Any:
    """Read a file's whole content: a tensor, or tensors in dicts, lists and tuples.

    Args:
        path: the file.
        label: the flag and the path, for messages.
        make: converts a tensor's array to the object that replaces it.

    Raises:
        InputError: see `read_checkpoint`.
    """
    with _refusing(label):
        if _is_safetensors(path):
            tensors, _ = _read_safetensors(path, lambda name: True)
            return {name: make(array) for name, array in tensors.items()}
        return read_torch_object(path, make)


@contextlib.contextmanager
def _refusing(label: str) -> Iterator[None]:
    try:
        yield
    except TorchFileError as error:
        raise InputError(f"{label} cannot be read: {error}") from None
    except OSError as error:
        sentence = f"{label} cannot be read ({first_line(error)}): look at the file and its disk"
        raise unreadable(sentence, error) from None
    except MemoryError:
        raise InputError(f"{label} cannot be read: there is not enough memory, free some") from None


def _is_safetensors(path: Path) -> bool:
    """Return whether the file is .safetensors and not of torch, by its first bytes.

    Raises:
        TorchFileError: it is neither.
    """
    if path.is_dir():
        raise TorchFileError(_folder_message(path))
    if path.suffix == ".distcp":
        raise TorchFileError(_DISTRIBUTED.replace("a folder", "part of a folder"))
    if path.exists() and not path.is_file():
        raise TorchFileError("it is no regular file: give a checkpoint file")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise TorchFileError("it is empty: fetch it again")
    if (shards := _SHARD.search(path.name)) and int(shards[1]) > 1:
        raise TorchFileError(_shards_message(int(shards[1])))
    for pattern, clause in _OTHER_KINDS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise TorchFileError(f"it is {clause}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LONGEST_HEADER:
        return True
    if head[0] == 0x80 or head.startswith((b"PK", MAGIC_AS_TEXT)):
        return False
    if head.lstrip()[:1] == b"{":
        raise TorchFileError(_json_message(path))
    raise TorchFileError(
        "it is neither a file of torch.save nor of .safetensors: name the checkpoint itself"
    )


def _folder_message(path: Path) -> str:
    if (path / ".metadata").is_file():
        return _DISTRIBUTED
    names = sorted(p.name for p in path.iterdir() if p.suffix in (".pt", ".bin", ".safetensors"))
    held = f", such as {', '.join(names[:3])}" if names else ""
    return f"it is a folder: name the checkpoint inside{held}"


def _shards_message(num_shards: int) -> str:
    return (
        f"it is of a model in {num_shards} shards: save its tensors as one file, by "
        "safetensors.torch.save_file or torch.save of the state dict"
    )


def _json_message(path: Path) -> str:
    with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError):
        shards = json.loads(path.read_bytes()).get("weight_map")
        if shards:
            return _shards_message(len(set(shards.values())))
    return "it is JSON text: name the checkpoint that it lies beside"


def _read_safetensors(
    path: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, Array], dict[str, str]]:
    with needs_extra():
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="numpy") as file:
            names = unwrapped_names(file.keys())
            bfloat16 = _bfloat16_tensors(path)
            tensors = {
                name: _read_bfloat16(path, *bfloat16[stored])
                if stored in bfloat16
                else file.get_tensor(stored)
                for stored, name in names.items()
                if wanted(name)
            }
            return tensors, file.metadata() or {}
    except (TorchFileError, OSError, MemoryError):
        raise
    except SafetensorError as error:
        raise TorchFileError(f"it is damaged ({first_line(error)}): fetch it again") from None
    except Exception as error:  # dtypes that NumPy lacks
        raise TorchFileError(
            f"it holds tensors of a type that is not read ({error!r}): save them as float32"
        ) from None


def _bfloat16_tensors(path: Path) -> dict[str, tuple[int, list[int]]]:
    """Return offset and shape of the bfloat16 tensors, a type that NumPy lacks, by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: (8 + length + entry["data_offsets"][0], entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "BF16"
    }


def _read_bfloat16(path: Path, start: int, shape: list[int]) -> Array:
    halves = np.fromfile(path, "<u2", int(np.prod(shape, dtype=np.int64)), offset=start)
    return from_bfloat16(halves).reshape(shape)
