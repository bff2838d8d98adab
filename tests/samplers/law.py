"""Does a sampler follow an exactly known law? Trials, uids for them, and one chi-square test.

A sampler passes when the p-value stays above ``THRESHOLD``. Every test file here makes fewer than
fifty such comparisons, so with fresh seeds it would fail by chance less than once in 10,000 runs.
That the comparison has teeth is itself tested: each law file feeds it wrong laws.
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
    """Uids like DataComp's: 128 random bits each."""
    uids = np.empty(num_examples, dtype=UID_DTYPE)
    for field in ("f0", "f1"):
        uids[field] = rng.integers(0, 2**64 - 1, size=num_examples, dtype=np.uint64, endpoint=True)
    return uids


def tally(sampler: Sampler, trials: Iterable[int]) -> Counter[Counts]:
    """Count the results of ``sampler``, count vectors, over one call per trial."""
    return Counter(tuple(int(count) for count in sampler(trial)) for trial in trials)


def p_value(observed: Mapping[Counts, int], law: Mapping[Counts, float]) -> float:
    """p-value of the observed count vectors under an exact law.

    Pearson's chi-square; vectors expected fewer than ten times are put together, from the rarest
    up, into cells of at least ten. Where even all of them together are expected fewer than ten
    times, they are judged by the exact binomial tail instead. A vector the law excludes gives 0.
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
    if pooled_expected > 0.0:  # the leftovers: judged alone, and added to the smallest cell
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
