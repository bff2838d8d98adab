"""FLYT, M-FLYT and Soft Cap Sampling for DataComp: learn which image-text pairs to train CLIP on.

The public functions and classes below are imported on first access, so that importing this package
needs neither torch nor much time. Each command of `datacomp-flyt` is one of these functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datacomp_flyt.clip.embed import EmbedReport, embed
    from datacomp_flyt.datacomp.check_subset import check_subset
    from datacomp_flyt.datacomp.checkout_patch import Patch, install, is_installed, revert
    from datacomp_flyt.datacomp.part_counts import PartsReport
    from datacomp_flyt.datacomp.resharded_parts import check_parts
    from datacomp_flyt.demo.run_demo import DemoResult, run_demo
    from datacomp_flyt.engines.engine import Engine
    from datacomp_flyt.errors import InputError
    from datacomp_flyt.flyt.train import TrainingResult, train
    from datacomp_flyt.flyt.training_config import TrainingConfig
    from datacomp_flyt.mixing.columns import Columns
    from datacomp_flyt.open_clip_hook.train_clip import train_clip
    from datacomp_flyt.pool.folder_hashes import HashedFile
    from datacomp_flyt.pool.manifest import check_manifest, write_manifest
    from datacomp_flyt.pool.subset import SubsetReport
    from datacomp_flyt.report.report import write_report
    from datacomp_flyt.scorers.base.score import score
    from datacomp_flyt.scorers.base.score_pool import ScoreReport
    from datacomp_flyt.scorers.base.scorer import Scorer
    from datacomp_flyt.scorers.linear_classifier.train import TrainedClassifier, train_classifier
    from datacomp_flyt.selection.methods import (
        column,
        e_flyt,
        hype,
        in_weighted_sum,
        m_flyt,
        neg_clip_loss_norm_sim,
        plain_sum,
        standardized_sum,
    )
    from datacomp_flyt.selection.open_pool import open_pool
    from datacomp_flyt.selection.samplers import (
        hard_cap_sample,
        sample_with_replacement,
        soft_cap_sample,
        top_fraction,
    )
    from datacomp_flyt.selection.sampling import Sampling
    from datacomp_flyt.selection.scores import Scores
    from datacomp_flyt.selection.select import select
    from datacomp_flyt.selection.subset import Subset
    from datacomp_flyt.self_filtering.plan import SelfFilterOptions
    from datacomp_flyt.self_filtering.self_filter import SelfFilterResult, self_filter
    from datacomp_flyt.tars.image_list import ImageList, list_images

__version__ = "0.1.0"

_MODULE_OF = {
    "HashedFile": "pool.folder_hashes",
    "Scorer": "scorers.base.scorer",
    "Columns": "mixing.columns",
    "Engine": "engines.engine",
    "ImageList": "tars.image_list",
    "PartsReport": "datacomp.part_counts",
    "Patch": "datacomp.checkout_patch",
    "SubsetReport": "pool.subset",
    "TrainingConfig": "flyt.training_config",
    "TrainingResult": "flyt.train",
    "EmbedReport": "clip.embed",
    "InputError": "errors",
    "check_manifest": "pool.manifest",
    "list_images": "tars.image_list",
    "train_clip": "open_clip_hook.train_clip",
    "train": "flyt.train",
    "write_manifest": "pool.manifest",
    "DemoResult": "demo.run_demo",
    "run_demo": "demo.run_demo",
    "SelfFilterOptions": "self_filtering.plan",
    "SelfFilterResult": "self_filtering.self_filter",
    "self_filter": "self_filtering.self_filter",
    "column": "selection.methods",
    "e_flyt": "selection.methods",
    "hype": "selection.methods",
    "in_weighted_sum": "selection.methods",
    "m_flyt": "selection.methods",
    "neg_clip_loss_norm_sim": "selection.methods",
    "plain_sum": "selection.methods",
    "standardized_sum": "selection.methods",
    "open_pool": "selection.open_pool",
    "hard_cap_sample": "selection.samplers",
    "sample_with_replacement": "selection.samplers",
    "soft_cap_sample": "selection.samplers",
    "top_fraction": "selection.samplers",
    "Sampling": "selection.sampling",
    "Scores": "selection.scores",
    "select": "selection.select",
    "Subset": "selection.subset",
    "ScoreReport": "scorers.base.score_pool",
    "TrainedClassifier": "scorers.linear_classifier.train",
    "embed": "clip.embed",
    "score": "scorers.base.score",
    "train_classifier": "scorers.linear_classifier.train",
    "check_parts": "datacomp.resharded_parts",
    "check_subset": "datacomp.check_subset",
    "install": "datacomp.checkout_patch",
    "is_installed": "datacomp.checkout_patch",
    "revert": "datacomp.checkout_patch",
    "write_report": "report.report",
}
"""The module of each public name, relative to this package."""

__all__ = [
    "Columns",
    "DemoResult",
    "EmbedReport",
    "Engine",
    "HashedFile",
    "ImageList",
    "InputError",
    "PartsReport",
    "Patch",
    "Sampling",
    "ScoreReport",
    "Scorer",
    "Scores",
    "SelfFilterOptions",
    "SelfFilterResult",
    "Subset",
    "SubsetReport",
    "TrainedClassifier",
    "TrainingConfig",
    "TrainingResult",
    "__version__",
    "check_manifest",
    "check_parts",
    "check_subset",
    "column",
    "e_flyt",
    "embed",
    "hard_cap_sample",
    "hype",
    "in_weighted_sum",
    "install",
    "is_installed",
    "list_images",
    "m_flyt",
    "neg_clip_loss_norm_sim",
    "open_pool",
    "plain_sum",
    "revert",
    "run_demo",
    "sample_with_replacement",
    "score",
    "select",
    "self_filter",
    "soft_cap_sample",
    "standardized_sum",
    "top_fraction",
    "train",
    "train_classifier",
    "train_clip",
    "write_manifest",
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
