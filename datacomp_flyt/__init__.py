"""FLYT, M-FLYT and Soft Cap Sampling for DataComp: learn which image-text pairs to train CLIP on.

The public functions and classes below are imported on first access, so that importing this package
needs neither torch nor much time. Each command of `datacomp-flyt` is one of these functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datacomp_flyt.datacomp.check_subset import check_subset
    from datacomp_flyt.datacomp.checkout_patch import install, is_installed, revert
    from datacomp_flyt.datacomp.resharded_parts import check_parts
    from datacomp_flyt.errors import InputError
    from datacomp_flyt.report.report import write_report

__version__ = "0.1.0"

_MODULE_OF = {
    "InputError": "errors",
    "check_parts": "datacomp.resharded_parts",
    "check_subset": "datacomp.check_subset",
    "install": "datacomp.checkout_patch",
    "is_installed": "datacomp.checkout_patch",
    "revert": "datacomp.checkout_patch",
    "write_report": "report.report",
}
"""The module of each public name, relative to this package."""

__all__ = [
    "InputError",
    "__version__",
    "check_parts",
    "check_subset",
    "install",
    "is_installed",
    "revert",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datacomp_flyt.installation import needs_extra

    with needs_extra():
        module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
