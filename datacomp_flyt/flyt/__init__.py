"""Training of a scoring model by Filter Like You Test (FLYT), and the metagradient behind it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datacomp_flyt.flyt.metagradient import weight_metagradient
    from datacomp_flyt.flyt.weighted_loss import weighted_clip_loss

__all__ = ["weight_metagradient", "weighted_clip_loss"]

# No module may have the name of a function here: importing it would hide the function.
_MODULES = {"weight_metagradient": "metagradient", "weighted_clip_loss": "weighted_loss"}


def __getattr__(name: str) -> Any:
    """Import a public function on first access, since the modules of this package need torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
