"""A sampling method, as `--sampling` names it: from `Scores` to a `Subset`.

Other packages add theirs as entry points of the group `datacomp_flyt.samplers`; they then appear in
`--sampling` and in `--name`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.errors import InputError
from datacomp_flyt.selection.scores import PoolSize, Scores
from datacomp_flyt.selection.subset import Subset
from datacomp_flyt.threads import check_num_workers


@dataclass(frozen=True)
class Sampling:
    """A sampling method.

    Attributes:
        name: its name in `--sampling` and `--name`.
        help: a clause for `--help`.
        count: `count(scores, uids, pool_size=, seed=, num_workers=, **options)` returns how often
            each example is drawn, an integer array [M]. `scores` are finite floats [M], `uids` a
            sorted `u8,u8` array [M] and `pool_size` a `PoolSize`.
        flags: its options: maps a keyword of `count` to the arguments of `argparse` for its flag.
            Flags without a value are not passed. Methods may share a flag.
        check: takes the same options and raises InputError if one is wrong or missing; it is called
            before the pool is read.
    """

    name: str
    help: str
    count: Callable[..., NDArray[np.integer]]
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    check: Callable[..., object] = lambda **options: None

    def sample(
        self, scores: Scores, *, seed: int = 0, num_workers: int | None = None, **options: Any
    ) -> Subset:
        """Sample a subset.

        Args:
            seed: any integer.
            num_workers: threads, which do not change the result; None for one on each core.
            options: those of `flags`; None is as good as leaving it out.

        Raises:
            InputError: an option is wrong, unknown or missing.
        """
        given = {name: value for name, value in options.items() if value is not None}
        seed, num_workers = check_integer(seed, "--seed"), check_num_workers(num_workers)
        self._check_names(given)
        self.check(**given)
        counts = self.count(
            scores.values,
            scores.uids,
            pool_size=scores.pool_size or PoolSize(len(scores), len(scores)),
            seed=seed,
            num_workers=num_workers,
            **given,
        )
        return Subset(scores.uids, counts)

    def _check_names(self, given: Iterable[str]) -> None:
        """Raise InputError for an option that is neither in `flags` nor a keyword of `count`."""
        try:
            keywords = inspect.signature(self.count).parameters
        except ValueError:  # a compiled function
            return
        if any(keyword.kind is keyword.VAR_KEYWORD for keyword in keywords.values()):
            return
        own = {"pool_size", "seed", "num_workers", *list(keywords)[:2]}
        names = sorted({*self.flags, *keywords} - own)
        for unknown in sorted(set(given) - set(names)):
            raise InputError(
                f"sampling method {self.name} has no argument {unknown}: {way_out(unknown, names)}"
            )


def way_out(unknown: str, options: Sequence[str], others: Sequence[str] = ()) -> str:
    """Return the end of a sentence about an unknown argument.

    Args:
        unknown: its name.
        options: the options that exist.
        others: other arguments that it may stand for.
    """
    if nearest := difflib.get_close_matches(unknown, [*options, *others], 1, 0.5):
        return f"did you mean {nearest[0]}?"
    return f"leave it out; the options are {', '.join(options) or 'none'}"
