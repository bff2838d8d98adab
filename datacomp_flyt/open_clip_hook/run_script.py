"""Runs an unmodified trainer script with the hook installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.hook import Hook
from datacomp_flyt.open_clip_hook.portable_checkpoints import portable_checkpoints
from datacomp_flyt.open_clip_hook.trainer import PACKAGES


def run_script(words: Sequence[str], hook: Hook) -> None:
    """Run `SCRIPT ARGS...` or `-m MODULE ARGS...` as Python itself would.

    Raises:
        InputError: the script or module does not exist, or it ended without using the hook.
        SystemExit: the script ended with an exit code other than 0.
    """
    accept_numpy_scalars()
    try:
        with portable_checkpoints():
            if words[0] == "-m":
                _run_module(words[1:], hook)
            else:
                _run_file(words, hook)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    if not hook.was_used:
        raise InputError(
            f"{' '.join(words[:2])} ended without training through {hook.trainer.package}: a model "
            "that it trained did not use the weights or the subset, so give a script that trains "
            f"with {hook.trainer.package}.main"
        )


def _run_module(words: Sequence[str], hook: Hook) -> None:
    if not words:
        raise InputError(f"-m needs a module, such as {hook.trainer.package}.main")
    sys.path.insert(0, os.getcwd())
    alias_packages(hook.trainer.package)
    module, *arguments = words
    if module in {f"{package}.main" for package in PACKAGES}:
        _run_main(hook, arguments)
    elif _is_importable(module):
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        raise InputError(
            f"there is no module {module}: give one, such as {hook.trainer.package}.main"
        )


def _run_file(words: Sequence[str], hook: Hook) -> None:
    script, *arguments = words
    if not os.path.isfile(script):
        raise InputError(
            f"{script} is not a file: give a script such as DataComp's train.py after --, or -m "
            f"{hook.trainer.package}.main"
        )
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    alias_packages(hook.trainer.package)
    if os.path.samefile(script, str(hook.trainer.main.__file__)):
        _run_main(hook, arguments)
    else:
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")


def alias_packages(package: str) -> None:
    """Alias the trainer's modules to the names of older releases, or of newer ones.

    DataComp's train.py imports `training.main`. Both names must be the same module objects, or
    functions replaced in one would be missing in the other.
    """
    for other in PACKAGES:
        if other == package or _is_importable(f"{other}.main"):
            continue
        for name, module in list(sys.modules.items()):
            if name == package or name.startswith(f"{package}."):
                sys.modules[other + name.removeprefix(package)] = module


def accept_numpy_scalars() -> None:
    """Allow torch to load checkpoints in which the learning rate is a NumPy scalar.

    open_clip writes such checkpoints up to 2.27; torch from 2.6 on refuses unknown types.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        return
    scalar: Any = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = [np.dtype, np.float64, type(np.dtype(np.float64))]
    torch.serialization.add_safe_globals([*kinds, *[(scalar, name) for name in names]])


def _run_main(hook: Hook, arguments: list[str]) -> None:
    """Call the trainer's main; run as a script it would be another module than the hooked one."""
    sys.argv = [str(hook.trainer.main.__file__), *arguments]
    hook.trainer.main.main(arguments)


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
