"""FLYT, M-FLYT and Soft Cap Sampling for DataComp: learn which image-text pairs to train CLIP on.

The public functions and classes below are imported on first access, so that importing this package
needs neither torch nor much time. Each command of `datacomp-flyt` is one of these functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datacomp_flyt.clip.embed import EmbedReport, embed
    from datacomp_flyt.errors import InputError
    from datacomp_flyt.scorers.base.score import score
    from datacomp_flyt.scorers.base.score_pool import ScoreReport
    from datacomp_flyt.scorers.linear_classifier.train import TrainedClassifier, train_classifier

__version__ = "0.1.0"

_MODULE_OF = {
    "EmbedReport": "clip.embed",
    "InputError": "errors",
    "ScoreReport": "scorers.base.score_pool",
    "TrainedClassifier": "scorers.linear_classifier.train",
    "embed": "clip.embed",
    "score": "scorers.base.score",
    "train_classifier": "scorers.linear_classifier.train",
}
"""The module of each public name, relative to this package."""

__all__ = [
    "EmbedReport",
    "InputError",
    "ScoreReport",
    "TrainedClassifier",
    "__version__",
    "embed",
    "score",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
