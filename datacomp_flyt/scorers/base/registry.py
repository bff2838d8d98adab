"""The registry of scorers: those of this package, one line each, and those of other packages.

A scorer's module is imported only when its name is asked for, since most of them need torch.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datacomp_flyt import entry_points
from datacomp_flyt.errors import InputError
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.scorers.base.scorer import Scorer

GROUP = "datacomp_flyt.scorers"
"""The group of entry points by which another package adds a scorer: NAME = "MODULE:CLASS"."""


@dataclass(frozen=True)
class ScorerEntry:
    """A scorer that can be chosen by name.

    Attributes:
        name: the name in `--scorer`.
        help: a clause on what it scores.
        columns: the columns that it writes by default; empty for a scorer of another package, see
            `columns_of`.
        class_path: MODULE:CLASS in `datacomp_flyt.scorers`, which adds the flags; empty for a
            scorer of another package.
        factory_path: MODULE:FUNCTION, called instead of the class to make the scorer; empty if the
            class is called.
        in_selection: whether `--name` of selection takes the scorer's name, to select by its first
            column. False if the name is a baseline of DataComp.
    """

    name: str
    help: str
    columns: tuple[str, ...] = ()
    class_path: str = ""
    factory_path: str = ""
    in_selection: bool = True


_BUILT_IN: dict[str, ScorerEntry] = {}


def register(
    name: str,
    class_path: str,
    help: str,
    columns: tuple[str, ...],
    *,
    factory_path: str = "",
    in_selection: bool = True,
) -> None:
    """Add a scorer of this package; see `ScorerEntry`.

    Raises:
        ValueError: the name is taken.
    """
    if name in _BUILT_IN:
        raise ValueError(f"a scorer named {name!r} is registered already")
    _BUILT_IN[name] = ScorerEntry(name, help, columns, class_path, factory_path, in_selection)


def list_scorers() -> dict[str, ScorerEntry]:
    """Return all scorers by name. No scorer's module is imported."""
    packages = entry_points.names_in(GROUP)
    others = {name: ScorerEntry(name, f"of package {packages[name]}") for name in packages}
    return {**_BUILT_IN, **{name: others[name] for name in others if name not in _BUILT_IN}}


def built_in_scorers() -> list[ScorerEntry]:
    """Return the scorers of this package. No scorer's module is imported."""
    return list(_BUILT_IN.values())


def scorer_class(name: str) -> type[Scorer]:
    """Import the class of a scorer, which adds the scorer's flags.

    Raises:
        InputError: there is no such scorer; packages that it needs are not installed; or another
            package adds it and cannot be imported, or adds a name that is taken.
    """
    entry = _entry(name)
    if not entry.class_path:
        added: type[Scorer] = entry_points.load(GROUP, name, Scorer)
        return added
    imported: type[Scorer] = _import(entry.class_path)
    return imported


def scorer_factory(name: str) -> Callable[..., Scorer]:
    """Import the function, or class, that makes a scorer from its options.

    Raises:
        InputError: as in `scorer_class`.
    """
    entry = _entry(name)
    factory: Callable[..., Scorer]
    factory = _import(entry.factory_path) if entry.factory_path else scorer_class(name)
    return factory


def option_names(factory: Callable[..., Scorer]) -> tuple[str, ...]:
    """Return the names of a scorer's options, which are the parameters of what makes it."""
    return tuple(inspect.signature(factory).parameters)


def columns_of(name: str) -> tuple[str, ...]:
    """Return the columns that a scorer writes by default.

    The class of a scorer of another package is imported; built-in scorers are not.

    Raises:
        InputError: as in `scorer_class`, or that class names no columns.
    """
    entry = _entry(name)
    columns = entry.columns or getattr(scorer_class(name), "columns", ())
    if not columns:
        raise InputError(f"scorer {name} has no `columns` in its class: name its column yourself")
    return tuple(columns)


def _entry(name: str) -> ScorerEntry:
    entries = list_scorers()
    if name not in entries:
        raise InputError(f"--scorer {name} is not known: give one of {', '.join(entries)}")
    if entries[name].class_path:
        entry_points.check_free(GROUP, name)
    return entries[name]


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    with needs_extra("train"):
        return getattr(importlib.import_module(f"datacomp_flyt.scorers.{module}"), attribute)


register(
    "clip_score",
    "clip_score:ClipScore",
    "cosine of image and caption",
    ("vit-b-32",),
    in_selection=False,
)
register(
    "neg_clip_loss",
    "neg_clip_loss:NegClipLoss",
    "CLIP score less the log-sum-exp over its batch",
    ("negCLIPLoss",),
)
register("norm_sim", "norm_sim:NormSim", "similarity to a target set", ("normsim_inf",))
register("vas", "vas:Vas", "variance alignment with a target set or the pool", ("vas",))
register(
    "norm_sim_d",
    "norm_sim_d:NormSimD",
    "variance alignment with a shrinking subset of the pool",
    ("normsim_d",),
)
register(
    "linear_classifier",
    "linear_classifier.linear_classifier:LinearClassifier",
    "logit of IN1K-Classifier or CC2M-Classifier",
    ("CC2M-Classifier",),
)
register("dfn", "dfn:Dfn", "cosine by any open_clip checkpoint, from images", ("DFN-FT",))
register(
    "hype",
    "hype.hype:Hype",
    "hyperbolic distance and specificities, from images",
    ("hype_lorentzian_distance", "hype_image_specificity", "hype_text_specificity"),
)
register(
    "e_flyt",
    "e_flyt.images:EFlytImages",
    "E-FLYT's scoring head, from npz or images",
    ("FLYT",),
    factory_path="e_flyt.images:make_e_flyt",
)
register("m_flyt", "m_flyt:MFlyt", "M-FLYT's mix of the columns in --scores_dir", ("m_flyt",))
