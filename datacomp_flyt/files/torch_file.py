"""Reads `torch.save` files without torch and without running any code in them.

It reads the zip format of torch 1.6 and later and the format before it. Selection runs where torch
is not installed, and a pickle may run any code when it is loaded; see `torch_pickle`. The numbers
of a tensor are read on demand.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.files.state_dict import find_state_dict, unwrapped_names
from datacomp_flyt.files.torch_pickle import (
    SAVE_THE_STATE_DICT,
    Storage,
    StoredTensor,
    TorchFileError,
    UnsupportedTensor,
    interpret,
)

__all__ = [
    "MAGIC_AS_TEXT",
    "TorchFileError",
    "from_bfloat16",
    "read_torch_file",
    "read_torch_object",
]

Array = NDArray[Any]

_DTYPES = {
    **{name: f"<{name[0]}{int(name.lstrip('floatuin')) // 8}" for name in (
        "float64", "float32", "float16", "int64", "int32", "int16",
    )},
    "int8": "i1", "uint8": "u1", "bool": "?", "bfloat16": "<u2",
}  # fmt: skip
_MOST_DIMENSIONS = 8
_MOST_REPEATS = 16  # arrays may take so many times the size of the file, since views may overlap
_LEAST_BYTES = 1 << 24  # bytes that arrays may take whatever the size of the file
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
MAGIC_AS_TEXT = b"L%dL\n" % _MAGIC  # the begin of such a file in pickle protocols 0 and 1


def read_torch_file(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Array]:
    """Return the tensors of a checkpoint's state dict by name, bfloat16 as float32.

    The state dict is the file's content or is kept in it under a usual key (`state_dict`, `model`,
    ...). Names are those of the model without wrappers; see `unwrapped_names`.

    Args:
        path: the file.
        wanted: returns whether to read the tensor of a name; other tensors are not read.

    Raises:
        TorchFileError: not a file of `torch.save`, one that holds more than data, or one without
            a state dict.
        OSError: the file cannot be read.
    """
    with _opened(path) as (content, read):
        state = {
            name: value
            for name, value in find_state_dict(content).items()
            if isinstance(name, str) and isinstance(value, StoredTensor | UnsupportedTensor)
        }
        names = unwrapped_names(state)
        return {name: read(state[stored], stored) for stored, name in names.items() if wanted(name)}


def read_torch_object(path: Path, make: Callable[[Array], Any] = lambda array: array) -> Any:
    """Return a file's whole content: its dicts, lists and tuples, with their tensors read.

    Args:
        make: converts a tensor's array to the object that replaces it; bfloat16 comes as float32.

    Raises:
        TorchFileError: not a file of `torch.save`, or one that holds more than data.
        OSError: the file cannot be read.
    """
    with _opened(path) as (content, read):
        return _Converter(read, make).convert(content)


def from_bfloat16(halves: Array) -> Array:
    """Convert bfloat16, given as uint16, to float32, of which it is the upper half."""
    words = halves.reshape(-1).astype("<u4") << np.uint32(16)
    return words.view("<f4").reshape(halves.shape)


_ReadStorage = Callable[[Storage], Array]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, _TensorReader]]:
    """Yield the content, and a reader of its tensors that works while the file is open.

    Every error that a damaged file causes in this module becomes a `TorchFileError`.
    """
    try:
        with path.open("rb") as file, contextlib.ExitStack() as stack:
            is_zip = file.read(2) == b"PK"
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            content, read = (
                _open_zip(stack.enter_context(zipfile.ZipFile(file)))
                if is_zip
                else _open_legacy(_Bounded(file, size))
            )
            yield content, _TensorReader(read, size)
    except (TorchFileError, MemoryError):
        raise
    except Exception as error:
        # zipfile reports a read error at the end of the file as a file that is no zip file
        for cause in (error, error.__context__):
            # EINVAL: the file itself names an offset that it does not have
            if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):
                raise cause from None
        text = str(error) if isinstance(error, zipfile.BadZipFile) else repr(error)
        raise TorchFileError(f"it is cut short or damaged ({text}): fetch it again") from None


# ------------------------------------------------------------------------------ two formats


def _open_zip(archive: zipfile.ZipFile) -> tuple[Any, _ReadStorage]:
    """Open the format of torch 1.6 and later: a pickle, and a member for each storage."""
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise TorchFileError(
            "it is TorchScript, a program that is not run by this one: give OpenAI's weights by "
            "their tag (openai), and save others, if you trust them, by "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'model.pt')"
        )
    if len(pickles) > 1:
        raise TorchFileError(f"it is a zip file with {len(pickles)} data.pkl: save it again")
    if not pickles:
        held = ", ".join(names[:3]) or "nothing"
        raise TorchFileError(
            f"it is a zip file without torch's data.pkl (it holds {held}): give a file of "
            "torch.save or .safetensors"
        )
    folder = pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in names and _stored(archive, order) != b"little":
        raise TorchFileError("its numbers are not little-endian: save it on another machine")
    content, _ = interpret(io.BytesIO(_stored(archive, pickles[0])))
    return content, lambda storage: np.frombuffer(
        _stored(archive, f"{folder}data/{storage.key}"), _dtype(storage)
    )


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member. torch does not compress, so it is no longer than the file."""
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise TorchFileError("it is encrypted: unpack it with its password, and save it again")
    if member.compress_type != zipfile.ZIP_STORED:
        raise TorchFileError(f"its {name} is compressed, and torch compresses nothing")
    return archive.read(name)


class _Bounded:
    """A file that refuses reads beyond its end, since damaged pickles ask for any length."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, size: int) -> bytes:
        return self.file.read(min(size, self.size - self.tell()))

    def skip(self, size: int) -> None:
        if self.tell() + size > self.size:
            raise TorchFileError("it is cut short: fetch it again")
        self.file.seek(size, io.SEEK_CUR)


def _open_legacy(stream: Any) -> tuple[Any, _ReadStorage]:
    """Open the format before torch 1.6: five pickles, then the storages one after another."""
    if interpret(stream)[0] != _MAGIC or interpret(stream)[0] != _PROTOCOL:
        raise TorchFileError(f"it is a pickle, but not of torch.save: {SAVE_THE_STATE_DICT}")
    if not interpret(stream)[0].get("little_endian"):
        raise TorchFileError("its numbers are not little-endian: save it on another machine")
    content, storages = interpret(stream)
    keys, _ = interpret(stream)
    extents: dict[str, tuple[int, int]] = {}  # start and bytes
    for key in keys:
        size = int.from_bytes(stream.read(8), "little") * _item_size(storages[key])
        extents[key] = stream.tell(), size
        stream.skip(size)

    def read(storage: Storage) -> Array:
        start, size = extents[storage.key]
        stream.file.seek(start)
        return np.frombuffer(stream.read(size), _dtype(storage))

    return content, read


def _dtype(storage: Storage) -> str:
    if storage.dtype not in _DTYPES:
        raise TorchFileError(f"it holds tensors of {storage.dtype}: save them as float32")
    return _DTYPES[storage.dtype]


def _item_size(storage: Storage) -> int:
    """Return the size of a number in bytes, also for types that are not read."""
    if storage.dtype in _DTYPES:
        return np.dtype(_DTYPES[storage.dtype]).itemsize
    return {"complex64": 8, "complex128": 16, "qint32": 4}.get(storage.dtype, 1)


class _TensorReader:
    """Reads tensors of an open file."""

    def __init__(self, read_storage: _ReadStorage, size: int) -> None:
        # tensors that share a storage mostly follow one another
        self._read_storage = functools.lru_cache(maxsize=1)(read_storage)
        self._bytes_left = max(_MOST_REPEATS * size, _LEAST_BYTES)
        self._done: dict[StoredTensor, Array] = {}  # tied weights are one tensor

    def __call__(self, tensor: StoredTensor | UnsupportedTensor, name: str) -> Array:
        """Return the numbers of the tensor of this name, in C order."""
        if isinstance(tensor, UnsupportedTensor):
            raise TorchFileError(f"its {name} is {tensor.kind}: save it as a dense float32 tensor")
        if len(tensor.shape) > _MOST_DIMENSIONS:
            raise TorchFileError(f"its {name} has {len(tensor.shape)} dimensions")
        sizes = (tensor.offset, *tensor.shape, *tensor.strides)
        if not all(type(size) is int for size in sizes):
            raise TorchFileError(f"its {name} has sizes that are no numbers")
        if tensor not in self._done:
            self._done[tensor] = self._read(tensor, name)
        return self._done[tensor]

    def _read(self, tensor: StoredTensor, name: str) -> Array:
        storage, offset, shape, strides = tensor
        values = self._read_storage(storage)
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        # a tensor without numbers has strides that mean nothing
        beyond = last >= len(values) if 0 not in shape else offset > len(values)
        if beyond or any(size < 0 for size in (offset, *shape, *strides)):
            raise TorchFileError(f"its {name} reaches beyond its storage")
        # an expanded tensor, with a stride of 0, has more numbers than its storage
        self._bytes_left -= math.prod(shape) * values.itemsize
        if self._bytes_left < 0:
            raise TorchFileError(
                f"its {name} repeats numbers of its storage over and over: save it after "
                ".contiguous()"
            )
        strides = tuple(stride * values.itemsize for stride in strides)
        array = np.lib.stride_tricks.as_strided(values[offset:], shape, strides).copy()
        return from_bfloat16(array) if storage.dtype == "bfloat16" else array


class _Converter:
    """Replaces tensors by arrays; an object that occurs twice is converted once."""

    def __init__(self, read: _TensorReader, make: Callable[[Array], Any]) -> None:
        self._read, self._make = read, make
        self._done: dict[int, Any] = {}

    def convert(self, value: Any, name: str = "") -> Any:
        """Return the object with its tensors read; `name` is its key, for messages."""
        if isinstance(value, StoredTensor | UnsupportedTensor):
            return self._make(self._read(value, name or "tensor"))
        if isinstance(value, Storage) or not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in self._done:
            if isinstance(value, dict):
                made: dict[Any, Any] = {}
                self._done[id(value)] = made
                made.update((k, self.convert(v, str(k))) for k, v in value.items())
            elif isinstance(value, list):
                items: list[Any] = []
                self._done[id(value)] = items
                items.extend(self.convert(item, name) for item in value)
            else:
                self._done[id(value)] = tuple(self.convert(item, name) for item in value)
        return self._done[id(value)]
