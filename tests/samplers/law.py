"""Compares the counts of a sampler with an exact law: trials, uids, and a chi-square test.

A sampler passes if the p-value is above ``THRESHOLD``. Each test file of this folder makes fewer
than fifty such comparisons, so with fresh seeds a file fails by chance in fewer than one of 10,000
runs. Each `test_*_law.py` also checks that the comparison rejects wrong laws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from tests.oracles.algorithm2 import Counts
from tests.oracles.selection import UID_DTYPE

THRESHOLD = 1e-6
SMALLEST_CELL = 10.0

Sampler = Callable[[int], npt.NDArray[Any]]


def random_uids(num_examples: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return uids of 128 random bits, as DataComp has."""
    uids = np.empty(num_examples, dtype=UID_DTYPE)
    for field in ("f0", "f1"):
        uids[field] = rng.integers(0, 2**64 - 1, size=num_examples, dtype=np.uint64, endpoint=True)
    return uids


def tally(sampler: Sampler, trials: Iterable[int]) -> Counter[Counts]:
    """Call ``sampler`` once per trial; return how often it gave each vector of counts."""
    return Counter(tuple(int(count) for count in sampler(trial)) for trial in trials)


def p_value(observed: Mapping[Counts, int], law: Mapping[Counts, float]) -> float:
    """Return the p-value of the observed count vectors under an exact law.

    The test is Pearson's chi-square. Vectors expected fewer than ten times are merged, from the
    rarest up, into cells of at least ten expected trials. A rest of fewer than ten expected trials
    is tested by its exact binomial tail. A vector that the law excludes gives 0.
    """
    if any(count > 0 and law.get(vector, 0.0) == 0.0 for vector, count in observed.items()):
        return 0.0
    trials = sum(observed.values())
    cells: list[tuple[float, int]] = []
    pooled_expected, pooled_observed = 0.0, 0
    for vector, probability in sorted(law.items(), key=lambda item: item[1]):
        expected, seen = trials * probability, observed.get(vector, 0)
        if expected >= SMALLEST_CELL:
            cells.append((expected, seen))
            continue
        pooled_expected += expected
        pooled_observed += seen
        if pooled_expected >= SMALLEST_CELL:
            cells.append((pooled_expected, pooled_observed))
            pooled_expected, pooled_observed = 0.0, 0
    tail = 1.0
    if pooled_expected > 0.0:  # the rest is tested alone, and is added to the smallest cell
        tail = float(stats.binom.sf(pooled_observed - 1, trials, pooled_expected / trials))
        smallest = min(range(len(cells)), key=lambda cell: cells[cell][0])
        expected, seen = cells[smallest]
        cells[smallest] = (expected + pooled_expected, seen + pooled_observed)
    statistic = sum((seen - expected) ** 2 / expected for expected, seen in cells)
    body = float(stats.chi2.sf(statistic, len(cells) - 1)) if len(cells) > 1 else 1.0
    return min(1.0, 2.0 * min(body, tail))


def assert_follows(observed: Mapping[Counts, int], law: Mapping[Counts, float]) -> None:
    p = p_value(observed, law)
    assert p > THRESHOLD, f"the counts do not follow the law: p = {p:.3g}"


def assert_rejected(observed: Mapping[Counts, int], law: Mapping[Counts, float]) -> None:
    p = p_value(observed, law)
    assert p <= THRESHOLD, f"a wrong law was not noticed: p = {p:.3g}"
