"""FLYT's methods as baselines of DataComp: `python baselines.py --name m_flyt ...`.

A patched DataComp checkout uses the three functions below; `python -m baselines_plugin` is the
same program without a checkout. They are imported on first access, so that
the program can install its handler of Ctrl-C first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines_plugin.flags import add_arguments
    from baselines_plugin.run import run_if_ours
    from datacomp_flyt.selection.registry import method_names

__all__ = ["add_arguments", "method_names", "run_if_ours"]

_MODULE_OF = {
    "add_arguments": "baselines_plugin.flags",
    "method_names": "datacomp_flyt.selection.registry",
    "run_if_ours": "baselines_plugin.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
