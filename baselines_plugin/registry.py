"""Which methods there are: one line each at the end of this file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from baselines_plugin import methods
from baselines_plugin.sampling import Sampler


@dataclass(frozen=True)
class Method:
    """A method of `--name`.

    Attributes:
        name: of `--name`.
        help: what it does, in a clause.
        make_scorer: from the flags to what scores the examples; checks the flags.
        flags: those of our flags, beyond the ones of all methods, that it reads.
        sampling: its sampling, where `--sampling` is not free.
        make_sampler: its own sampler, of no name, where it takes no `--sampling` at all.
        reads_pool: it reads more of the pool than columns, which has to be in memory then.
    """

    name: str
    help: str
    make_scorer: Callable[[argparse.Namespace], methods.Scorer]
    flags: tuple[str, ...]
    sampling: str | None = None
    make_sampler: Callable[[argparse.Namespace], Sampler] | None = None
    reads_pool: bool = False


METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Add a method.

    Raises:
        ValueError: its name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    METHODS[method.name] = method


def method_names() -> list[str]:
    """Names of `--name`."""
    return list(METHODS)


_ONE = ("score",)
_MIX = ("allow_missing_scores", "save_scoring_model")
_SUM = ("score_columns", *_MIX)
_IN = ("weight_ratio", "imagenet_accuracies", *_MIX)
register(Method("m_flyt", "learned linear mix", methods.m_flyt, ("scoring_model", *_MIX)))
register(
    Method(
        "flyt",
        "E-FLYT on the pool's embeddings",
        methods.flyt,
        ("scoring_model",),
        reads_pool=True,
    )
)
register(Method("sum", "plain sum of columns", methods.plain_sum, _SUM))
register(Method("standardized_sum", "sum of standardised columns", methods.standardized_sum, _SUM))
register(Method("in_weighted_sum", "weighted by ImageNet accuracy", methods.in_weighted_sum, _IN))
for name, published, text in (
    ("neg_clip_loss", "negCLIPLoss", "negCLIPLoss"),
    ("norm_sim", "normsim_inf", "NormSim to a target set"),
    ("vas", "vas", "variance alignment score"),
    ("norm_sim_d", "normsim_d", "NormSim_2-D, the dynamic target"),
    ("dfn", "DFN-FT", "data filtering network"),
    ("linear_classifier", "CC2M-Classifier", "linear classifier on embeddings"),
):
    register(Method(name, f"{text} (column {published})", methods.column(published), _ONE))
register(Method("hype", "sum of HYPE's three columns", methods.hype, _MIX))
register(
    Method(
        "neg_clip_loss_norm_sim",
        "NormSim of the best by negCLIPLoss",
        methods.neg_clip_loss_norm_sim,
        ("score_columns", "first_fraction", "fraction_of"),
    )
)
register(Method("scs", "Soft Cap Sampling of --score", methods.one_column, _ONE, "scs"))
register(Method("hcs", "Hard Cap Sampling of --score", methods.one_column, _ONE, "hcs"))
register(Method("no_cap", "--score with replacement", methods.one_column, _ONE, "no_cap"))
register(Method("top_fraction", "highest --score", methods.one_column, _ONE, "top_fraction"))
register(
    Method(
        "self_filtering",
        "the last mix of a finished `datacomp-flyt self_filter`",
        methods.self_filtering,
        ("run_dir",),
        make_sampler=methods.as_counted,
        reads_pool=True,
    )
)
