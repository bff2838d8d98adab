"""FLYT, M-FLYT and Soft Cap Sampling for DataComp: learn which image-text pairs to train CLIP on.

The public functions and classes below are imported on first access, so that importing this package
needs neither torch nor much time. Each command of `datacomp-flyt` is one of these functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datacomp_flyt.errors import InputError
    from datacomp_flyt.open_clip_hook.train_clip import train_clip
    from datacomp_flyt.pool.manifest import check_manifest, write_manifest
    from datacomp_flyt.tars.image_list import list_images

__version__ = "0.1.0"

_MODULE_OF = {
    "InputError": "errors",
    "check_manifest": "pool.manifest",
    "list_images": "tars.image_list",
    "train_clip": "open_clip_hook.train_clip",
    "write_manifest": "pool.manifest",
}
"""The module of each public name, relative to this package."""

__all__ = [
    "InputError",
    "__version__",
    "check_manifest",
    "list_images",
    "train_clip",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
