"""On 10,000 examples, statistics of the counts equal those of a naive Algorithm 2.

Both implementations run with several seeds. Each statistic (the number of examples drawn k times,
the mean count of a decile of scores, ...) is compared by a t-test over the seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from datacomp_flyt.samplers import hard_cap_counts, no_cap_counts, soft_cap_counts
from tests.oracles.algorithm2 import naive_hard_cap, naive_no_cap, naive_soft_cap
from tests.samplers.law import random_uids
from tests.samplers.wrong_laws import with_replacement_inside_a_round

NUM_EXAMPLES = 10_000
NUM_SAMPLES = 12_000
ALPHA = 0.15
# The file compares about 25 statistics in each of 4 tests, and the t-tests are approximate. With
# 1e-7 for each, the file fails by chance in fewer than one of 10,000 runs with fresh seeds.
FIGURE_THRESHOLD = 1e-7

POOL_RNG = np.random.default_rng(41)
SCORES = POOL_RNG.normal(0.0, 2.0, size=NUM_EXAMPLES)
UIDS = random_uids(NUM_EXAMPLES, POOL_RNG)


def figures(counts: npt.NDArray[Any], scores: npt.NDArray[Any]) -> dict[str, float]:
    """Return the compared statistics by name: repetitions, means by score decile, extremes."""
    repetitions = np.bincount(np.minimum(counts, 10), minlength=11)
    # The lowest decile is hardly ever drawn, so the three lowest are merged for the t-test.
    best_first = counts[np.argsort(-scores)]
    deciles = np.array_split(best_first, 10)
    by_decile = [*deciles[:7], np.concatenate(deciles[7:])]
    return {
        **{f"drawn {k} times": float(n) for k, n in enumerate(repetitions)},
        **{f"mean of decile {d}": float(part.mean()) for d, part in enumerate(by_decile)},
        "mean of the ten best": float(best_first[:10].mean()),
        "mean of the hundred best": float(best_first[:100].mean()),
        "sum of squares": float((counts.astype(np.float64) ** 2).sum()),
        "spread among the hundred best": float(best_first[:100].std()),
    }


def table(
    samples: list[npt.NDArray[Any]], scores: npt.NDArray[Any]
) -> dict[str, npt.NDArray[np.float64]]:
    rows = [figures(np.asarray(sample), scores) for sample in samples]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def t_test(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return the two-sided p-value of Student's t-test with pooled variance.

    A statistic may be constant over the runs, for example because of a cap.
    """
    difference = abs(float(a.mean() - b.mean()))
    if np.ptp(np.concatenate([a, b])) == 0.0:
        return 1.0
    degrees = len(a) + len(b) - 2
    variance = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / degrees
    if variance == 0.0:
        return 0.0
    error = float(np.sqrt(variance * (1 / len(a) + 1 / len(b))))
    return 2.0 * float(stats.t.sf(difference / error, degrees))


def smallest_p_value(
    ours: list[npt.NDArray[Any]], naive: list[npt.NDArray[Any]], scores: npt.NDArray[Any]
) -> tuple[float, str]:
    """Return the smallest p-value of all statistics, and the name of that statistic."""
    a, b = table(ours, scores), table(naive, scores)
    p_values = {name: t_test(a[name], b[name]) for name in a}
    worst = min(p_values, key=lambda name: p_values[name])
    return p_values[worst], worst


def assert_alike(
    ours: list[npt.NDArray[Any]],
    naive: list[npt.NDArray[Any]],
    scores: npt.NDArray[Any] = SCORES,
) -> None:
    p, name = smallest_p_value(ours, naive, scores)
    assert p > FIGURE_THRESHOLD, f"'{name}' differs from the naive loop: p = {p:.3g}"


def assert_unlike(
    ours: list[npt.NDArray[Any]],
    naive: list[npt.NDArray[Any]],
    scores: npt.NDArray[Any] = SCORES,
) -> None:
    p, name = smallest_p_value(ours, naive, scores)
    assert p <= FIGURE_THRESHOLD, f"a wrong law was not noticed: '{name}', p = {p:.3g}"


def naive_runs(batch_size: int, alpha: float, runs: int, seed: int) -> list[npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [naive_soft_cap(SCORES, NUM_SAMPLES, alpha, rng, batch_size) for _ in range(runs)]


@pytest.fixture(scope="module")
def naive_rounds_of_100() -> list[npt.NDArray[Any]]:
    return naive_runs(100, ALPHA, 40, seed=51)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_soft_cap_in_rounds_of_100_counts_like_the_naive_loop(
    naive_rounds_of_100: list[npt.NDArray[Any]], num_workers: int
) -> None:
    ours = [
        soft_cap_counts(
            SCORES, UIDS, NUM_SAMPLES, ALPHA, seed, batch_size=100, num_workers=num_workers
        )
        for seed in range(1_000 * num_workers, 1_000 * num_workers + 20)
    ]
    assert_alike(ours, naive_rounds_of_100)


def test_soft_cap_one_by_one_counts_like_the_naive_loop() -> None:
    """A naive run computes 12,000 softmaxes over the pool, so there are few naive runs."""
    ours = [soft_cap_counts(SCORES, UIDS, NUM_SAMPLES, ALPHA, seed) for seed in range(40)]
    assert_alike(ours, naive_runs(1, ALPHA, 4, seed=52))


def test_hard_cap_counts_like_the_naive_loop() -> None:
    scores, uids, limit = SCORES[:2_000], UIDS[:2_000], 3
    rng = np.random.default_rng(53)
    ours = [hard_cap_counts(scores, uids, 2_500, limit, seed) for seed in range(40)]
    naive = [naive_hard_cap(scores, 2_500, limit, rng) for _ in range(8)]
    wrong = [naive_hard_cap(scores, 2_500, limit + 1, rng) for _ in range(8)]
    assert_alike(ours, naive, scores)
    assert_unlike(wrong, naive, scores)


def test_no_cap_counts_like_the_naive_draw() -> None:
    rng = np.random.default_rng(54)
    ours = [no_cap_counts(SCORES, UIDS, NUM_SAMPLES, seed) for seed in range(40)]
    assert_alike(ours, [naive_no_cap(SCORES, NUM_SAMPLES, rng) for _ in range(40)])


def test_the_comparison_notices_a_wrong_penalty(
    naive_rounds_of_100: list[npt.NDArray[Any]],
) -> None:
    assert_unlike(naive_runs(100, 1.1 * ALPHA, 20, seed=55), naive_rounds_of_100)


def test_the_comparison_notices_draws_with_replacement_inside_a_round(
    naive_rounds_of_100: list[npt.NDArray[Any]],
) -> None:
    rng = np.random.default_rng(56)
    wrong = [
        with_replacement_inside_a_round(SCORES, NUM_SAMPLES, ALPHA, rng, 100) for _ in range(20)
    ]
    assert_unlike(wrong, naive_rounds_of_100)


def test_the_comparison_notices_rounds_of_another_size(
    naive_rounds_of_100: list[npt.NDArray[Any]],
) -> None:
    assert_unlike(naive_runs(1_000, ALPHA, 20, seed=57), naive_rounds_of_100)


def test_the_comparison_accepts_the_naive_loop_itself(
    naive_rounds_of_100: list[npt.NDArray[Any]],
) -> None:
    assert_alike(naive_runs(100, ALPHA, 20, seed=58), naive_rounds_of_100)
