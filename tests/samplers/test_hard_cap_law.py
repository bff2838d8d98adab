"""Hard Cap Sampling: one draw at a time, probability zero at the frequency limit (section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from datacomp_flyt.samplers import hard_cap_counts
from tests.oracles.algorithm2 import (
    exact_hard_cap_distribution,
    exact_no_cap_distribution,
    naive_no_cap,
    softmax,
)
from tests.oracles.selection import uid_array
from tests.samplers.law import assert_follows, assert_rejected, random_uids, tally


class Case(NamedTuple):
    scores: Sequence[float]
    num_samples: int
    limit: int
    trials: int = 4_000


FOUR = (1.3, 0.4, 0.0, -0.9)
FIVE = (0.7, 0.6, -0.2, -0.5, -1.6)
SIX = (2.0, 1.1, 0.3, 0.0, -0.4, -1.0)

CASES = {
    "limit two": Case(FOUR, 6, 2, 20_000),
    "limit three": Case(FIVE, 8, 3, 10_000),
    "limit one is a draw without replacement": Case(SIX, 3, 1, 8_000),
    "all but one place filled": Case(FOUR, 7, 2),
    "limit never reached": Case(FOUR, 4, 4, 8_000),
    "limit above the number of draws": Case(FOUR, 3, 1_000),
    "equal scores": Case((0.0, 0.0, 0.0), 5, 2),
    "scores around 1e6": Case([s + 1e6 for s in FOUR], 6, 2),
    "range 60": Case((60.0, 30.5, 30.0, 0.0), 4, 2),
    # If 1e300 is subtracted first, the other scores become equal.
    "one giant": Case((1e300, 0.5, 0.0, -0.5), 5, 2),
    "range 60, the small ones decide": Case((60.0, 0.5, 0.0, -0.5), 5, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_follow_the_exact_law_over_seeds(name: str) -> None:
    case = CASES[name]
    position = list(CASES).index(name)
    scores = np.array(case.scores)
    uids = random_uids(len(scores), np.random.default_rng(200 + position))
    first = 1_000_000 * position
    observed = tally(
        lambda seed: hard_cap_counts(scores, uids, case.num_samples, case.limit, seed),
        range(first, first + case.trials),
    )
    assert_follows(observed, exact_hard_cap_distribution(scores, case.num_samples, case.limit))


def test_counts_follow_the_exact_law_over_uids_at_one_seed() -> None:
    rng, scores = np.random.default_rng(17), np.array(FOUR)
    observed = tally(
        lambda _: hard_cap_counts(scores, random_uids(4, rng), 6, 2, seed=0), range(8_000)
    )
    assert_follows(observed, exact_hard_cap_distribution(scores, 6, 2))


def test_counts_follow_the_exact_law_over_consecutive_uids_at_one_seed() -> None:
    scores = np.array(FOUR)
    observed = tally(
        lambda trial: hard_cap_counts(
            scores, uid_array((0, 4 * trial + i) for i in range(4)), 6, 2, seed=3
        ),
        range(8_000),
    )
    assert_follows(observed, exact_hard_cap_distribution(scores, 6, 2))


def clipped_no_cap(
    scores: npt.NDArray[Any], num_samples: int, limit: int, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """A wrong law: draws beyond the limit go to other examples uniformly."""
    counts = naive_no_cap(scores, num_samples, rng)
    spare = int(np.maximum(counts - limit, 0).sum())
    counts = np.minimum(counts, limit)
    for _ in range(spare):
        counts[rng.choice(np.flatnonzero(counts < limit))] += 1
    return counts


def batch_that_caps_at_its_end(
    scores: npt.NDArray[Any], num_samples: int, limit: int, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """A wrong law: the limit is applied only once, after half of the draws."""
    half = num_samples // 2
    counts = naive_no_cap(scores, half, rng)
    weights = np.where(counts < limit, softmax(scores), 0.0)
    drawn = rng.choice(len(scores), size=num_samples - half, p=weights / weights.sum())
    return counts + np.bincount(drawn, minlength=len(scores))


@pytest.mark.parametrize(
    "wrong", [clipped_no_cap, batch_that_caps_at_its_end], ids=lambda law: law.__name__
)
def test_a_wrong_law_is_rejected(wrong: Any) -> None:
    case, rng = CASES["limit two"], np.random.default_rng(21)
    scores = np.array(case.scores)
    observed = tally(lambda _: wrong(scores, case.num_samples, case.limit, rng), range(case.trials))
    assert_rejected(observed, exact_hard_cap_distribution(scores, case.num_samples, case.limit))


def test_clipped_draws_are_rejected_even_where_every_outcome_is_possible() -> None:
    """With limit 3 and eight draws from five examples, both laws have the same support."""
    case, rng = CASES["limit three"], np.random.default_rng(22)
    scores = np.array(case.scores)
    observed = tally(lambda _: clipped_no_cap(scores, 8, 3, rng), range(case.trials))
    law = exact_hard_cap_distribution(scores, 8, 3)
    assert set(observed) <= set(law)
    assert_rejected(observed, law)


def test_an_idle_limit_leaves_the_multinomial_law_and_a_binding_one_does_not() -> None:
    scores, uids = np.array(FOUR), random_uids(4, np.random.default_rng(23))
    multinomial = exact_no_cap_distribution(scores, 5)
    idle = tally(lambda seed: hard_cap_counts(scores, uids, 5, 5, seed), range(4_000))
    binding = tally(lambda seed: hard_cap_counts(scores, uids, 5, 3, seed), range(4_000))
    assert_follows(idle, multinomial)
    assert_rejected(binding, multinomial)
