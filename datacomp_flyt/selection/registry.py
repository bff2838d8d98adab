"""The methods of `--name` and `--sampling`: ours, one registration each, and other packages'."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from datacomp_flyt import entry_points, mixing
from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.columns import check_named_once
from datacomp_flyt.mixing.published import HYPE_COLUMNS, PUBLISHED_COLUMNS
from datacomp_flyt.scorers.base.registry import GROUP as SCORERS
from datacomp_flyt.scorers.base.registry import built_in_scorers, columns_of
from datacomp_flyt.selection import methods
from datacomp_flyt.selection.methods import ScoringMethod
from datacomp_flyt.selection.samplers import HARD_CAP, NO_CAP, SOFT_CAP, TOP_FRACTION
from datacomp_flyt.selection.sampling import Sampling
from datacomp_flyt.selection.scores import AVAILABLE

SAMPLERS = "datacomp_flyt.samplers"
"""The group of entry points in which other packages add sampling methods."""

ALIASES = {"flyt": "e_flyt", "sum": "plain_sum"}
"""Former names of methods, which `--name` still takes."""


@dataclass(frozen=True)
class Method:
    """A method of `--name`.

    Attributes:
        name: its name.
        help: a clause that describes it.
        make: takes the options, checks them, reads the files that they name and returns the
            function of the pool.
        options: the names of its options, which are those of its flags.
        sampling: its sampling method, if `--sampling` cannot choose one.
        counts: whether its scores are draw counts, so that no sampling follows.
        reads_pool: whether it reads more of the pool than columns, which needs it in memory.
        no_meaning: flags of the pool that have no meaning for it.
    """

    name: str
    help: str
    make: Callable[..., ScoringMethod]
    options: tuple[str, ...]
    sampling: str | None = None
    counts: bool = False
    reads_pool: bool = False
    no_meaning: tuple[str, ...] = ()


METHODS: dict[str, Method] = {}
SAMPLINGS: dict[str, Sampling] = {}


def register(method: Method) -> None:
    """Add a method of `--name`.

    Raises:
        ValueError: its name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    METHODS[method.name] = method


def register_sampling(sampling: Sampling) -> None:
    """Add a sampling method, which is also a method of `--name` for one column.

    Raises:
        ValueError: its name is taken.
    """
    register(_of_one_column(sampling.name, sampling.help))
    SAMPLINGS[sampling.name] = sampling


def method_names() -> list[str]:
    """Return all names that `--name` takes, those of other packages and former names included."""
    return list(dict.fromkeys([*METHODS, *_added_methods(), *ALIASES]))


def sampling_names() -> list[str]:
    """Return all names that `--sampling` takes, those of other packages included."""
    return list(dict.fromkeys([*SAMPLINGS, *entry_points.names_in(SAMPLERS)]))


def describe_methods() -> dict[str, str]:
    """Return a clause about each method, by name."""
    own = {method.name: method.help for method in METHODS.values()}
    return own | {name: text for name, text in _added_methods().items() if name not in own}


def find_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        InputError: there is none, or another package adds one of ours.
    """
    name = ALIASES.get(name, name)
    if name in METHODS:
        for group in (SAMPLERS, SCORERS):
            entry_points.check_free(group, name)
        return METHODS[name]
    if name in entry_points.names_in(SAMPLERS):
        return _of_one_column(name, find_sampling(name).help)
    if name in entry_points.names_in(SCORERS):
        return _of_scorer(name, _column_help(name))
    raise InputError(f"there is no method {name!r}: wanted one of {', '.join(method_names())}")


def find_sampling(name: str) -> Sampling:
    """Return the sampling method of a name.

    Raises:
        InputError: there is none; or it is another package's and cannot be imported.
    """
    if name in SAMPLINGS:
        entry_points.check_free(SAMPLERS, name)
        return SAMPLINGS[name]
    if name not in entry_points.names_in(SAMPLERS):
        names = ", ".join(sampling_names())
        raise InputError(f"there is no sampling method {name!r}: wanted one of {names}")
    sampling: Sampling = entry_points.load(SAMPLERS, name, Sampling)
    return sampling


def is_option(name: str) -> bool:
    """Return whether a method or sampling method of this package has an option of this name."""
    return any(name in method.options for method in METHODS.values()) or any(
        name in sampling.flags for sampling in SAMPLINGS.values()
    )


def _added_methods() -> dict[str, str]:
    """Return the clauses about methods of other packages, by name."""
    samplers, scorers = entry_points.names_in(SAMPLERS), entry_points.names_in(SCORERS)
    return {
        **{name: f"samples --column (package {samplers[name]})" for name in samplers},
        **{name: f"{_column_help(name)} (package {scorers[name]})" for name in scorers},
    }


def _column_help(scorer: str) -> str:
    return f"the column that scorer {scorer} writes"


# ---------------------------------------------------------- options, named like the flags


def _m_flyt(
    *, scoring_model: str | None = None, allow_missing_scores: bool = False
) -> ScoringMethod:
    if scoring_model is None:
        raise InputError("--name m_flyt wants --scoring_model: 'paper' or a file")
    return methods.mixed(mixing.load_mixing_model(scoring_model), "m_flyt", allow_missing_scores)


def _e_flyt(*, scoring_model: str | None = None) -> ScoringMethod:
    if scoring_model is None:
        raise InputError("--name e_flyt wants --scoring_model: a file of E-FLYT training")
    return methods.scored_by_head(scoring_model)


def _plain_sum(
    *, score_columns: Sequence[str] | None = None, allow_missing_scores: bool = False
) -> ScoringMethod:
    model = mixing.plain_sum(score_columns or PUBLISHED_COLUMNS)
    return methods.mixed(model, "plain_sum", allow_missing_scores)


def _standardized_sum(
    *, score_columns: Sequence[str] | None = None, allow_missing_scores: bool = False
) -> ScoringMethod:
    model = mixing.standardized_sum(score_columns or PUBLISHED_COLUMNS)
    return methods.mixed(model, "standardized_sum", allow_missing_scores)


def _in_weighted_sum(
    *,
    weight_ratio: float = methods.WEIGHT_RATIO,
    imagenet_accuracies: Mapping[str, float] | Sequence[str] | None = None,
    allow_missing_scores: bool = False,
) -> ScoringMethod:
    accuracies = imagenet_accuracies or None
    if accuracies is not None and not isinstance(accuracies, Mapping):
        accuracies = _accuracies(accuracies)
    model = mixing.in_weighted_sum(weight_ratio, accuracies)
    return methods.mixed(model, "in_weighted_sum", allow_missing_scores)


def _accuracies(words: Sequence[str]) -> dict[str, float]:
    """Read COLUMN=VALUE pairs."""
    try:
        pairs = [word.rsplit("=", 1) for word in words]
        accuracies = {column: float(value) for column, value in pairs}
    except ValueError:
        raise InputError(
            f"--imagenet_accuracies {' '.join(words)}: wanted COLUMN=VALUE pairs, such as "
            "DFN-FT=0.342"
        ) from None
    check_named_once([column for column, _ in pairs], "--imagenet_accuracies")
    return accuracies


def _hype(*, allow_missing_scores: bool = False) -> ScoringMethod:
    return methods.mixed(mixing.plain_sum(HYPE_COLUMNS), "hype", allow_missing_scores)


def _two_stages(
    *,
    score_columns: Sequence[str] = methods.TWO_STAGES,
    first_fraction: float = methods.FIRST_FRACTION,
    fraction_of: str = AVAILABLE,
) -> ScoringMethod:
    methods.check_two_stages(score_columns, first_fraction, fraction_of)
    return lambda pool: methods.neg_clip_loss_norm_sim(
        pool, score_columns=score_columns, first_fraction=first_fraction, fraction_of=fraction_of
    )


def _self_filtering(*, run_dir: str | None = None) -> ScoringMethod:
    if run_dir is None:
        raise InputError(
            "--name self_filtering wants --run_dir: --out of `datacomp-flyt self_filter`"
        )
    return methods.counted_by_run(run_dir)


def _one_column(name: str, *, column: str | None = None) -> ScoringMethod:
    if column is None:
        raise InputError(f"--name {name} wants --column COLUMN, such as clip_l14_similarity_score")
    return methods.of_column(column)


def _of_one_column(name: str, text: str) -> Method:
    """The method that samples `--column` by a sampling method."""
    make = functools.partial(_one_column, name)
    return Method(name, f"{text} of --column", make, ("column",), sampling=name)


def _column_of_scorer(name: str, *, column: str | None = None) -> ScoringMethod:
    if column is not None:
        return methods.of_column(column)
    default = columns_of(name)[0]
    return methods.of_column(default, {default: name})


def _of_scorer(name: str, text: str) -> Method:
    """The method that selects by the column that a scorer writes, or the first of several."""
    return Method(name, text, functools.partial(_column_of_scorer, name), ("column",))


# ------------------------------------------------------------------------- registration

_MIX = ("allow_missing_scores", "save_scoring_model")
_SUM = ("score_columns", *_MIX)
_IN = ("weight_ratio", "imagenet_accuracies", *_MIX)
register(Method("m_flyt", "learned linear mix", _m_flyt, ("scoring_model", *_MIX)))
register(
    Method(
        "e_flyt",
        "E-FLYT on the pool's embeddings",
        _e_flyt,
        ("scoring_model",),
        reads_pool=True,
        no_meaning=("scores_dir", "allow_partial_scores"),
    )
)
register(Method("plain_sum", "plain sum of columns", _plain_sum, _SUM))
register(Method("standardized_sum", "sum of standardised columns", _standardized_sum, _SUM))
register(Method("in_weighted_sum", "weighted by ImageNet accuracy", _in_weighted_sum, _IN))
register(Method("hype", "sum of HYPE's three columns", _hype, _MIX))
register(
    Method(
        "neg_clip_loss_norm_sim",
        "NormSim of the best by negCLIPLoss",
        _two_stages,
        ("score_columns", "first_fraction", "fraction_of"),
    )
)
for _sampling in (SOFT_CAP, HARD_CAP, NO_CAP, TOP_FRACTION):
    register_sampling(_sampling)
register(
    Method(
        "self_filtering",
        "the last subset of a finished `datacomp-flyt self_filter`",
        _self_filtering,
        ("run_dir",),
        counts=True,
        reads_pool=True,
    )
)
for _scorer in built_in_scorers():
    if _scorer.in_selection and _scorer.name not in METHODS:  # a name there is a method of its own
        _text = f"{_scorer.help} (column {_scorer.columns[0]})"
        register(_of_scorer(_scorer.name, _text))
