"""Which scorers there are: one line each. Their modules are imported when asked for, as most of
them need torch."""

from __future__ import annotations

import importlib

from datacomp_flyt.installation import needs_extra
from datacomp_flyt.scorers.base.scorer import Scorer

SCORERS: dict[str, tuple[str, str]] = {}
"""By the name of `--scorer`: the class as MODULE:CLASS, and what it makes, in a clause."""


def register(name: str, where: str, text: str) -> None:
    """Add a scorer.

    Raises:
        ValueError: its name is taken.
    """
    if name in SCORERS:
        raise ValueError(f"a scorer named {name!r} is registered already")
    SCORERS[name] = (where, text)


def scorer_class(name: str) -> type[Scorer]:
    """The class of a registered scorer.

    Raises:
        InputError: it needs packages that are not installed.
    """
    module, _, attribute = SCORERS[name][0].partition(":")
    with needs_extra("train"):
        found: type[Scorer] = getattr(importlib.import_module(module), attribute)
    return found


_HERE = "datacomp_flyt.scorers"
register("clip_score", f"{_HERE}.clip_score:ClipScore", "cosine of image and caption")
register("neg_clip_loss", f"{_HERE}.neg_clip_loss:NegClipLoss", "CLIP score less the batch's")
register("norm_sim", f"{_HERE}.norm_sim:NormSim", "likeness to a target set")
register("vas", f"{_HERE}.vas:Vas", "variance alignment with a target set or the pool")
register("norm_sim_d", f"{_HERE}.norm_sim_d:NormSimD", "the same with a shrinking target")
register(
    "linear_classifier",
    f"{_HERE}.linear_classifier:LinearClassifier",
    "logit of IN1K- or CC2M-Classifier",
)
register("dfn", f"{_HERE}.dfn:Dfn", "cosine by any open_clip checkpoint, from images")
register("hype", f"{_HERE}.hype:Hype", "hyperbolic distance and specificities, from images")
register("e_flyt", f"{_HERE}.e_flyt:EFlyt", "E-FLYT's head, from npz or images")
register("m_flyt", f"{_HERE}.m_flyt:MFlyt", "M-FLYT's mix of the columns of --scores_dir")
