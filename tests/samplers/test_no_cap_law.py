"""No Cap is plain sampling with replacement from the softmax: the counts are multinomial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from datacomp_flyt.samplers import no_cap_counts
from tests.oracles.algorithm2 import (
    exact_no_cap_distribution,
    naive_no_cap,
    naive_soft_cap,
    softmax,
)
from tests.oracles.selection import uid_array
from tests.samplers.law import (
    THRESHOLD,
    assert_follows,
    assert_rejected,
    random_uids,
    tally,
)


class Case(NamedTuple):
    scores: Sequence[float]
    num_samples: int
    trials: int = 4_000


FOUR = (1.3, 0.4, 0.0, -0.9)

CASES = {
    "four examples, six draws": Case(FOUR, 6, 20_000),
    "three examples, eight draws": Case((0.5, 0.0, -1.0), 8, 8_000),
    "six examples, three draws": Case((2.0, 1.1, 0.3, 0.0, -0.4, -1.0), 3, 8_000),
    "one draw": Case(FOUR, 1),
    "equal scores": Case((0.0, 0.0, 0.0), 5),
    "scores around 1e6": Case([s + 1e6 for s in FOUR], 5),
    "scores around -1e6": Case([s - 1e6 for s in FOUR], 5),
    "range 60": Case((30.0, 29.0, -30.0), 6),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_are_multinomial_over_seeds(name: str) -> None:
    case = CASES[name]
    position = list(CASES).index(name)
    scores = np.array(case.scores)
    uids = random_uids(len(scores), np.random.default_rng(300 + position))
    first = 1_000_000 * position
    observed = tally(
        lambda seed: no_cap_counts(scores, uids, case.num_samples, seed),
        range(first, first + case.trials),
    )
    assert_follows(observed, exact_no_cap_distribution(scores, case.num_samples))


def test_counts_are_multinomial_over_uids_at_one_seed() -> None:
    rng, scores = np.random.default_rng(27), np.array(FOUR)
    observed = tally(lambda _: no_cap_counts(scores, random_uids(4, rng), 6, seed=0), range(8_000))
    assert_follows(observed, exact_no_cap_distribution(scores, 6))


def test_counts_are_multinomial_over_consecutive_uids_at_one_seed() -> None:
    scores = np.array(FOUR)
    observed = tally(
        lambda trial: no_cap_counts(
            scores, uid_array((0, 4 * trial + i) for i in range(4)), 6, seed=3
        ),
        range(8_000),
    )
    assert_follows(observed, exact_no_cap_distribution(scores, 6))


def large_pool_p_value(counts: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Return the two-sided chi-square p-value of a vector of counts (too far off, or too close)."""
    expected = counts.sum() * softmax(scores)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    degrees = len(scores) - 1
    return 2.0 * float(min(stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees)))


def test_one_large_sample_is_multinomial() -> None:
    """The counts of 1,000 examples in 100,000 draws have the multinomial's mean and spread."""
    rng = np.random.default_rng(28)
    scores = rng.uniform(-0.5, 0.5, size=1_000)
    uids = random_uids(1_000, rng)
    counts = no_cap_counts(scores, uids, 100_000, 1)
    assert counts.sum() == 100_000
    assert large_pool_p_value(counts, scores) > THRESHOLD


def test_a_sample_spread_too_evenly_is_rejected() -> None:
    rng = np.random.default_rng(28)
    scores = rng.uniform(-0.5, 0.5, size=1_000)
    even = np.round(100_000 * softmax(scores)).astype(int)
    assert large_pool_p_value(even, scores) < THRESHOLD
    multinomial = rng.multinomial(100_000, softmax(scores))
    assert large_pool_p_value(multinomial, scores) > THRESHOLD


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_a_law_with_a_small_penalty_is_rejected(alpha: float) -> None:
    rng, law = np.random.default_rng(29), exact_no_cap_distribution(FOUR, 6)
    wrong = tally(lambda _: naive_soft_cap(FOUR, 6, alpha, rng), range(10_000))
    right = tally(lambda _: naive_no_cap(FOUR, 6, rng), range(10_000))
    assert_rejected(wrong, law)
    assert_follows(right, law)


def test_slightly_wrong_probabilities_are_rejected() -> None:
    """Scores divided by 1.05, a temperature that is five percent off, are rejected."""
    rng, law = np.random.default_rng(30), exact_no_cap_distribution(FOUR, 6)
    wrong = tally(lambda _: naive_no_cap([s / 1.05 for s in FOUR], 6, rng), range(20_000))
    assert_rejected(wrong, law)
