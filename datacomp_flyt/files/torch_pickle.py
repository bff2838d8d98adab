"""Interpreter for the pickles inside files of `torch.save`, which runs none of their code.

`pickletools.genops` decodes the opcodes, and this module gives a meaning to those that describe
data. A name in a pickle is never imported: a tensor becomes a `StoredTensor`, an object of a
class that only holds data (`argparse.Namespace`, NumPy scalars, paths) becomes `Data`, and any
other name is refused. The result therefore depends neither on torch nor on NumPy's version.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from datacomp_flyt.files import torch_names

SAVE_THE_STATE_DICT = (
    "in the program that made it, save the tensors alone: "
    "torch.save(model.state_dict(), 'model.pt')"
)


class TorchFileError(ValueError):
    """The file is not of `torch.save`, or holds more than data; the text is one clause."""


class Storage(NamedTuple):
    """A flat block of numbers: the torch name of its type, such as `float32`, and its key."""

    dtype: str
    key: str


class StoredTensor(NamedTuple):
    """A strided view of a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class UnsupportedTensor(NamedTuple):
    """A tensor whose numbers are not in the file as such: quantised, sparse, on `meta`."""

    kind: str


@dataclass(frozen=True, eq=False)
class Data:
    """An object that holds data and is no tensor; its content is not kept."""

    name: str


class _Global(NamedTuple):
    name: str


_KEYS = (str, int, float, bytes, type(None), Data)


def interpret(stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Return the object that the pickle at the stream's position describes, and its storages.

    The object consists of dicts, lists, tuples, text, numbers, `StoredTensor`, `UnsupportedTensor`,
    `Storage` and `Data`. The stream's position is moved to the end of the pickle.

    Raises:
        TorchFileError: it names a function or class that is not known to hold only data.
        Exception: of any other kind, if the pickle is damaged.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            return machine.stack.pop(), machine.storages
        machine.step(opcode.name, argument)
    raise TorchFileError("its pickle has no end")


class _Machine:
    """Stack, marks and memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._below: list[list[Any]] = []  # one stack for each mark
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _PUSHES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self._memo[argument])
        elif name in ("GLOBAL", "INST"):
            named = _known(*argument.split(" ", 1))
            self.stack.append(named if name == "GLOBAL" else _call(named, self._pop_mark()))
        elif name in _STEPS:
            _STEPS[name](self)
        elif name == "PERSID":
            raise TorchFileError("torch reads no file of pickle_protocol=0: save it without that")
        elif name not in ("PROTO", "FRAME"):
            raise TorchFileError(f"it holds more than data (pickle opcode {name})")

    def _mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def _tuple(self, size: int | None = None) -> None:
        items = self._pop_mark() if size is None else self.stack[-size:]
        if size is not None:
            del self.stack[-size:]
        self.stack.append(tuple(items))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TorchFileError("it names a class by what is no text")
        self.stack.append(_known(module, name))

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack.append(_call(self.stack.pop(), arguments))

    def _new_object_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self._reduce()

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Data):
            target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Data):
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _dict(self) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _frozenset(self) -> None:
        self._pop_mark()
        self.stack.append(Data("builtins.frozenset"))

    def _storage(self) -> None:
        kind, storage_type, key, *more = self.stack.pop()
        if kind != "storage" or not isinstance(storage_type, _Global):
            raise TorchFileError("it holds something by reference that is no storage of numbers")
        dtype = torch_names.STORAGES.get(storage_type.name.rpartition(".")[2])
        if dtype is None:
            raise TorchFileError(f"it holds a {storage_type.name}, which is not known")
        if not isinstance(key, str):
            raise TorchFileError("it holds a storage without a name")
        if len(more) > 2 and more[2] is not None:
            raise TorchFileError("it holds views of storages as torch kept them before 0.4")
        self.stack.append(Storage(dtype, key))
        self.storages[key] = self.stack[-1]


_PUSHES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": lambda: Data("builtins.set"),
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": lambda m: m._pop_mark().clear(),
    "DUP": lambda m: m.stack.append(m.stack[-1]),
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda m: m._tuple(1),
    "TUPLE2": lambda m: m._tuple(2),
    "TUPLE3": lambda m: m._tuple(3),
    "LIST": lambda m: m.stack.append(m._pop_mark()),
    "DICT": _Machine._dict,
    "APPEND": lambda m: m._append([m.stack.pop()]),
    "APPENDS": lambda m: m._append(m._pop_mark()),
    "ADDITEMS": lambda m: m._append(m._pop_mark()),
    "SETITEM": _Machine._set_item,
    "SETITEMS": lambda m: m._set(m._pop_mark()),
    "FROZENSET": _Machine._frozenset,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "NEWOBJ_EX": _Machine._new_object_ex,
    "BUILD": lambda m: m.stack.pop() and None,  # attributes, such as a state dict's `_metadata`
    "BINPERSID": _Machine._storage,
}


def _key(key: Any) -> Any:
    """Return a dict's key. Nested tuples are refused, since hashing them may take forever."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, _KEYS) for part in parts):
        raise TorchFileError("it holds a dict with keys that are neither text nor numbers")
    return key


def _known(module: str, name: str) -> _Global:
    """Return the class or function if it is known to hold only data."""
    # protocol 2, which torch uses, has names of Python 2
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if (
        full in torch_names.KNOWN
        or torch_names.DTYPE.fullmatch(full)
        or (module == "numpy.dtypes" and name.isidentifier())
    ):
        return _Global(full)
    if module.startswith("torch.distributed"):
        raise TorchFileError(
            f"it holds a {full}, one process's part of a model that is spread over several: save "
            "the full state dict, by get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) of "
            "torch.distributed.checkpoint.state_dict"
        )
    if full == "torch.storage._load_from_bytes":
        raise TorchFileError(
            "it was written by pickle.dump, not by torch.save: " + SAVE_THE_STATE_DICT
        )
    raise TorchFileError(
        f"it holds {full}, which is code and is not run by this program: {SAVE_THE_STATE_DICT}"
    )


def _call(function: Any, arguments: Any) -> Any:
    """Return what a call of a known class or function makes."""
    if not isinstance(function, _Global):
        raise TorchFileError("its pickle calls what is no function")
    name = function.name
    if name in torch_names.TENSORS:
        return _tensor(*arguments, is_typed=name != "torch._utils._rebuild_tensor_v3")
    if name in torch_names.PARAMETERS:
        return arguments[0]
    if name in torch_names.NO_PLAIN_TENSORS:
        return UnsupportedTensor(torch_names.NO_PLAIN_TENSORS[name])
    if name == torch_names.SUBCLASS:
        rebuild, kind, inner, *_ = arguments
        if kind.name not in torch_names.TENSOR_CLASSES:
            return UnsupportedTensor(f"a {kind.name}")
        return _call(rebuild, inner)
    if name in torch_names.DICTS:
        pairs = arguments[0] if name == torch_names.DICTS[0] and arguments else []
        return {_key(key): value for key, value in pairs}
    return Data("numpy.ndarray" if name.endswith("._reconstruct") else name)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *more: Any, is_typed: bool
) -> StoredTensor | UnsupportedTensor:
    """Return the tensor that torch's `_rebuild_tensor*` makes of these arguments.

    `more` are requires_grad, backward hooks, the type if the storage has none, and flags such as
    `conj` and `neg`, which mean that the numbers have to be conjugated or negated.
    """
    if not isinstance(storage, Storage):
        raise TorchFileError("it holds a tensor without a storage")
    rest = list(more[2:])
    if not is_typed:
        storage = Storage(rest.pop(0).name.removeprefix("torch."), storage.key)
    if rest and rest[0]:
        return UnsupportedTensor("of numbers to be conjugated or negated")
    return StoredTensor(storage, offset, shape, strides)
