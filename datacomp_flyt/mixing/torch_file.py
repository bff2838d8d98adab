"""Tensors of a `torch.save` file, read without torch and without unpickling.

Selection runs where torch is not installed, and a pickle may run any code when it is loaded. This
reader only looks at the opcodes (`pickletools.genops` executes nothing), knows the dozen that a
state dict of plain tensors needs, and refuses the rest.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


class TorchFileError(ValueError):
    """Not a `torch.save` file of plain tensors: one clause why."""


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()
_DIMENSIONS = 8


def read_torch_file(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, NDArray[Any]]:
    """The tensors of a state dict, raw or under the key `state_dict`, by name.

    Args:
        wanted: whether to read the tensor of this name; the numbers of others stay on the disk.

    Raises:
        TorchFileError: not a zip file of torch 1.6 or later, or it holds more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise TorchFileError("it is a zip file without torch's data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in archive.namelist() and _stored(archive, order) != b"little":
                raise TorchFileError("its numbers are not little-endian")
            content = _interpret(_stored(archive, pickles[0]))
            if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
                content = content["state_dict"]
            if not isinstance(content, dict):
                raise TorchFileError("it holds no state dict")
            return {
                name: _read(value, archive, folder)
                for name, value in content.items()
                if isinstance(value, _Tensor) and isinstance(name, str) and wanted(name)
            }
    except (zipfile.BadZipFile, OSError) as error:
        raise TorchFileError(
            f"it is not a torch.save file of torch 1.6 or later ({error})"
        ) from None
    except TorchFileError:
        raise
    except Exception as error:  # whatever a mangled program makes the few lines below do
        raise TorchFileError(f"it is damaged ({error!r})") from None


def check_torch_file(path: Path) -> None:
    """Whether a file of `torch.save` is as torch wrote it, which `torch.load` does not ask.

    Raises:
        TorchFileError: members are damaged, or compressed, as torch leaves none: they may become
            any size.
    """
    if not zipfile.is_zipfile(path):  # of torch before 1.6
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise TorchFileError(f"its {member.filename} is compressed")
        if damaged := archive.testzip():
            raise TorchFileError(f"its {damaged} is damaged")


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member, which torch does not compress: it is no longer than the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise TorchFileError(f"its {name} is compressed, and torch compresses nothing")
    return archive.read(name)


def _interpret(program: bytes) -> Any:
    """The object that a state dict's pickle describes: dicts, tuples, `_Tensor`s and no more."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    marks: list[int] = []  # where they are in the stack

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        if stack[start] is not _MARK:
            raise TorchFileError("its pickle takes apart what it has not put together")
        items = stack[start + 1 :]
        del stack[start:]
        return items

    for opcode, value, _ in pickletools.genops(program):
        name, argument = opcode.name, cast("Any", value)
        if name in ("PROTO", "FRAME"):
            continue
        elif name == "STOP":
            return stack.pop()
        elif name == "MARK":
            marks.append(len(stack))
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_TUPLE", "EMPTY_LIST"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list}[name]())
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "BINPERSID":
            kind, storage, key, *_ = stack.pop()
            if kind != "storage" or storage.name.split()[-1] not in _DTYPES:
                raise TorchFileError(f"it holds a {storage.name}, which this reader does not know")
            if not isinstance(key, str):
                raise TorchFileError("it holds a storage without a name")
            stack.append(_Storage(_DTYPES[storage.name.split()[-1]], key))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_build(stack.pop(), arguments))
        elif name == "BUILD":
            stack.pop()  # a state dict's `_metadata`
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][_name(key)] = value
        elif name == "SETITEMS":
            items = pop_to_mark()
            stack[-1].update(zip(map(_name, items[::2]), items[1::2], strict=True))
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            stack.append(argument)
        else:
            raise TorchFileError(f"it holds more than tensors (pickle opcode {name})")
    raise TorchFileError("its pickle has no end")


def _name(key: Any) -> str | int:
    """A key; others may be tuples of tuples of tuples, whose hash takes for ever."""
    if not isinstance(key, str | int):
        raise TorchFileError("it holds a dict with keys that are neither text nor numbers")
    return key


def _build(function: _Global, arguments: Any) -> Any:
    if function.name == "collections OrderedDict" and not arguments:
        return {}
    if function.name != "torch._utils _rebuild_tensor_v2":
        raise TorchFileError(f"it would call {function.name.replace(' ', '.')}")
    storage, offset, shape, strides, *_ = arguments
    return _Tensor(storage, offset, shape, strides)


def _read(tensor: _Tensor, archive: zipfile.ZipFile, folder: str) -> NDArray[Any]:
    storage, offset, shape, strides = tensor
    if len(shape) > _DIMENSIONS:
        raise TorchFileError(f"a tensor has {len(shape)} dimensions")
    if not all(type(number) is int for number in (offset, *shape, *strides)):
        raise TorchFileError("a tensor has sizes that are no numbers")
    values = np.frombuffer(_stored(archive, f"{folder}data/{storage.key}"), storage.dtype)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if (
        any(number < 0 for number in (offset, *shape, *strides))
        or last >= max(len(values), 1)
        or math.prod(shape) > len(values)
    ):
        raise TorchFileError("a tensor reaches beyond its storage")
    strides = tuple(stride * values.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, strides).copy()
