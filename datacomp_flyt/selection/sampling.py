"""A sampling method, as `--sampling` names it: from `Scores` to a `Subset`.

Other packages add theirs as entry points of the group `datacomp_flyt.samplers`; they then appear in
`--sampling` and in `--name`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.selection.scores import PoolSize, Scores
from datacomp_flyt.selection.subset import Subset
from datacomp_flyt.threads import default_num_workers


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
            InputError: an option is wrong or missing.
        """
        given = {name: value for name, value in options.items() if value is not None}
        self.check(**given)
        counts = self.count(
            scores.values,
            scores.uids,
            pool_size=scores.pool_size or PoolSize(len(scores), len(scores)),
            seed=seed,
            num_workers=default_num_workers() if num_workers is None else num_workers,
            **given,
        )
        return Subset(scores.uids, counts)
