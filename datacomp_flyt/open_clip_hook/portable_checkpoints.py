"""Keeps the checkpoints of a hooked script readable with older NumPy and Python.

DataComp's `evaluate.py` runs with NumPy 1.23 and Python 3.10. It cannot unpickle a NumPy scalar
that NumPy 2 has saved (`No module named 'numpy._core'`), such as the learning rate in checkpoints
of open_clip up to 2.27, nor a path that Python 3.13 has saved (`No module named 'pathlib._local'`),
such as those in the `info.pkl` of DataComp's `train.py`.
"""

from __future__ import annotations

import contextlib
import copy
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_SCALARS = (np.number, np.bool_, np.str_, np.bytes_)
_PATHS: tuple[type, ...] = (
    pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath,
    pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath,
)  # fmt: skip


@contextlib.contextmanager
def portable_checkpoints() -> Iterator[None]:
    """Make `torch.save` convert NumPy scalars to numbers, and pickle paths as Python 3.12 does."""
    save, modules = torch.save, [kind.__module__ for kind in _PATHS]

    def save_plain(obj: Any, *args: Any, **named: Any) -> Any:
        return save(without_numpy_scalars(obj), *args, **named)

    torch.save = save_plain
    for kind in _PATHS:
        kind.__module__ = "pathlib"
    try:
        yield
    finally:
        torch.save = save
        for kind, module in zip(_PATHS, modules, strict=True):
            kind.__module__ = module


def without_numpy_scalars(value: Any) -> Any:
    """Return the value with the NumPy scalars in its dicts, lists and tuples as Python numbers.

    A part without such scalars is returned uncopied, so a state dict keeps its attributes.
    """
    if isinstance(value, _SCALARS):
        return value.item()
    if isinstance(value, dict):
        items = [(without_numpy_scalars(k), without_numpy_scalars(v)) for k, v in value.items()]
        if all(k is a and v is b for (k, v), (a, b) in zip(items, value.items(), strict=True)):
            return value
        plain = copy.copy(value)
        plain.clear()
        plain.update(items)
        return plain
    if isinstance(value, (list, tuple)):
        parts = [without_numpy_scalars(part) for part in value]
        if all(part is old for part, old in zip(parts, value, strict=True)):
            return value
        if hasattr(value, "_make"):  # a named tuple
            return value._make(parts)
        return type(value)(parts)
    return value
