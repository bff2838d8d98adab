"""Samplers with extreme scores, tiny pools and bad input, and their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacomp_flyt.errors import InputError
from datacomp_flyt.samplers import hard_cap_counts, no_cap_counts, soft_cap_counts
from tests.oracles.selection import uid_array
from tests.samplers.law import random_uids

Array = npt.NDArray[Any]
HYPOTHESIS = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def uids_for(num_examples: int, seed: int = 0) -> Array:
    return random_uids(num_examples, np.random.default_rng(seed))


# ------------------------------------------------------------------------ extreme scores


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_range_1e4_draw_the_best_alone(dtype: Any) -> None:
    """The best score minus 200 penalties of 0.15 is still far above the next score, 204 lower."""
    scores = np.linspace(-5e3, 5e3, 50).astype(dtype)
    counts = soft_cap_counts(scores, uids_for(50), 200, 0.15, 1)
    assert counts.tolist() == [0] * 49 + [200]
    rounds = soft_cap_counts(scores, uids_for(50), 205, 0.15, 1, batch_size=10)
    assert rounds[40:].tolist() == [20] * 5 + [21] * 5
    assert rounds[:40].sum() == 0
    assert no_cap_counts(scores, uids_for(50), 200, 1).tolist() == [0] * 49 + [200]
    hard = hard_cap_counts(scores, uids_for(50), 205, 10, 1)
    assert hard.tolist() == [0] * 29 + [5] + [10] * 20


@pytest.mark.parametrize("top", [1e300, 1.7e308])
def test_scores_near_the_largest_double(top: float) -> None:
    """The difference of two such scores may overflow; the order of the draws is still certain."""
    scores = np.array([0.0, top, -top, 1.0])
    uids = uids_for(4)
    assert soft_cap_counts(scores, uids, 10, 0.15, 1).tolist() == [0, 10, 0, 0]
    assert soft_cap_counts(scores, uids, 12, 0.15, 1, batch_size=4).tolist() == [3, 3, 3, 3]
    assert soft_cap_counts(scores, uids, 9, 0.15, 1, batch_size=3).tolist() == [3, 3, 0, 3]
    assert no_cap_counts(scores, uids, 10, 1).tolist() == [0, 10, 0, 0]
    assert hard_cap_counts(scores, uids, 16, 4, 1).tolist() == [4, 4, 4, 4]
    assert hard_cap_counts(scores, uids, 12, 4, 1).tolist() == [4, 4, 0, 4]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_deep_penalties_do_not_underflow(batch_size: int) -> None:
    """exp(-alpha n) is 0 in float64 from n = 1,500 on; the counts still follow the scores.

    An example with a score d higher gets about d / alpha more draws. The tolerance of sixty draws
    is 30 nats.
    """
    scores, alpha, num_samples = np.array([0.0, 3.0, -3.0]), 0.5, 6_000
    counts = soft_cap_counts(scores, uids_for(3), num_samples, alpha, 1, batch_size=batch_size)
    assert counts.sum() == num_samples
    if batch_size == 3:
        assert counts.tolist() == [2_000] * 3
    else:
        expected = num_samples / 3 + scores / alpha
        assert np.abs(counts - expected).max() < 60


@pytest.mark.parametrize("alpha", [1e6, 1e300])
def test_a_huge_penalty_takes_every_example_in_turn(alpha: float) -> None:
    scores = np.linspace(-50.0, 50.0, 20)
    assert soft_cap_counts(scores, uids_for(20), 60, alpha, 1).tolist() == [3] * 20
    counts = soft_cap_counts(scores, uids_for(20), 50, alpha, 1)
    assert sorted(counts.tolist()) == [2] * 10 + [3] * 10


def test_equal_scores_differ_by_chance_only() -> None:
    """With all scores 0.25, no count is further from the mean than the law allows."""
    scores, uids = np.full(1_000, 0.25), uids_for(1_000)
    for counts in (
        soft_cap_counts(scores, uids, 3_000, 2.0, 1),
        soft_cap_counts(scores, uids, 3_000, 2.0, 1, batch_size=100),
    ):
        assert counts.sum() == 3_000
        # each draw divides the rate by e**2: a tenth draw would be 12 nats ahead of the mean
        assert counts.max() <= 9
        assert len(set(counts.tolist())) > 1


def test_a_pool_of_one_takes_every_draw() -> None:
    scores, uids = np.array([-3.5]), uids_for(1)
    assert soft_cap_counts(scores, uids, 7, 0.5, 1).tolist() == [7]
    assert soft_cap_counts(scores, uids, 2_000, 2.0, 1).tolist() == [2_000]
    assert no_cap_counts(scores, uids, 7, 1).tolist() == [7]
    assert hard_cap_counts(scores, uids, 7, 7, 1).tolist() == [7]
    assert hard_cap_counts(scores, uids, 7, 9, 1).tolist() == [7]


# ------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 300])
def test_soft_cap_draws_exactly_n_and_no_example_twice_a_round(batch_size: int, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(0.0, 4.0, size=300).astype(dtype)
    for num_samples in (1, 63, 64, 65, 1_000):
        counts = soft_cap_counts(scores, uids_for(300), num_samples, 0.05, 9, batch_size=batch_size)
        assert np.issubdtype(counts.dtype, np.integer)
        assert counts.shape == (300,)
        assert counts.sum() == num_samples
        assert counts.min() >= 0
        rounds = math.ceil(num_samples / batch_size)
        assert counts.max() <= rounds
        if num_samples == 1_000 and batch_size == 300:  # three full rounds, then a hundred
            assert counts.min() >= 3


def test_the_limit_on_rounds_binds() -> None:
    """Without the limit of one draw per round, the best example would get more than 16 draws."""
    scores = np.zeros(300)
    scores[5] = 12.0
    rounds = soft_cap_counts(scores, uids_for(300), 1_000, 0.05, 9, batch_size=64)
    one_by_one = soft_cap_counts(scores, uids_for(300), 1_000, 0.05, 9)
    assert rounds[5] == 16
    assert one_by_one[5] > 60


@pytest.mark.parametrize("spread", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_hard_cap_draws_exactly_n_and_never_passes_the_limit(spread: float, limit: int) -> None:
    scores = np.random.default_rng(3).normal(0.0, spread, size=200)
    uids = uids_for(200)
    for num_samples in (1, 150, 200 * limit - 1, 200 * limit):
        counts = hard_cap_counts(scores, uids, num_samples, limit, 4)
        assert np.issubdtype(counts.dtype, np.integer)
        assert counts.sum() == num_samples
        assert counts.min() >= 0
        assert counts.max() <= limit
    assert counts.tolist() == [limit] * 200  # limit * M == N


def test_no_cap_draws_exactly_n() -> None:
    scores = np.random.default_rng(3).normal(0.0, 2.0, size=200)
    for num_samples in (1, 150, 5_000):
        counts = no_cap_counts(scores, uids_for(200), num_samples, 4)
        assert np.issubdtype(counts.dtype, np.integer)
        assert counts.shape == (200,)
        assert counts.min() >= 0
        assert counts.sum() == num_samples


SAMPLERS: dict[str, Callable[..., Array]] = {
    "soft cap": lambda s, u, seed, **more: soft_cap_counts(s, u, 900, 0.15, seed, **more),
    "soft cap in rounds": lambda s, u, seed, **more: soft_cap_counts(
        s, u, 900, 0.15, seed, batch_size=70, **more
    ),
    "hard cap": lambda s, u, seed, **more: hard_cap_counts(s, u, 900, 3, seed, **more),
    "no cap": lambda s, u, seed, **more: no_cap_counts(s, u, 900, seed, **more),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_seed_decides_and_nothing_else(name: str) -> None:
    sample = SAMPLERS[name]
    scores, uids = np.random.default_rng(5).normal(size=800), uids_for(800)
    first = sample(scores, uids, 1)
    np.random.seed(0)  # noqa: NPY002  (the global state must have no effect)
    assert sample(scores, uids, 1).tobytes() == first.tobytes()
    results = {sample(scores, uids, seed).tobytes() for seed in (0, 1, 2, 2**31, 2**32 + 1)}
    assert len(results) == 5
    assert sample(scores, uids_for(800, seed=1), 1).tobytes() != first.tobytes()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_number_of_workers_changes_nothing(name: str) -> None:
    sample = SAMPLERS[name]
    scores, uids = np.random.default_rng(6).normal(size=5_003), uids_for(5_003)
    results = {sample(scores, uids, 1, num_workers=n).tobytes() for n in (1, 2, 3, 7)}
    results.add(sample(scores, uids, 1).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_more_workers_than_examples(name: str) -> None:
    sample = SAMPLERS[name]
    scores, uids = np.zeros(300), uids_for(300)
    assert sample(scores, uids, 1, num_workers=400).tolist() == sample(scores, uids, 1).tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_arguments_are_only_read(name: str) -> None:
    scores, uids = np.random.default_rng(7).normal(size=400), uids_for(400)
    kept_scores, kept_uids = scores.copy(), uids.copy()
    scores.flags.writeable = uids.flags.writeable = False
    SAMPLERS[name](scores, uids, 1)
    assert scores.tobytes() == kept_scores.tobytes()
    assert uids.tobytes() == kept_uids.tobytes()


@pytest.mark.parametrize("name", SAMPLERS)
def test_strided_views_count_like_copies(name: str) -> None:
    rng = np.random.default_rng(8)
    scores, uids = rng.normal(size=(400, 3))[:, 1], uids_for(1_200)[::-3]
    assert not scores.flags.c_contiguous
    view = SAMPLERS[name](scores, uids, 1)
    copy = SAMPLERS[name](scores.copy(), uids.copy(), 1)
    assert view.tobytes() == copy.tobytes()


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_scores_count_like_the_same_numbers_in_float64(name: str) -> None:
    scores = np.random.default_rng(9).normal(size=400).astype(np.float32)
    uids = uids_for(400)
    narrow = SAMPLERS[name](scores, uids, 1)
    wide = SAMPLERS[name](scores.astype(np.float64), uids, 1)
    assert narrow.tolist() == wide.tolist()


def test_one_round_for_all_draws_among_distant_scores() -> None:
    """Many ring times lie between two others; the search for the last ring once failed there."""
    scores, uids = np.linspace(-3.2, 3.2, 25) ** 3, uids_for(25)
    for seed in range(100):
        counts = soft_cap_counts(scores, uids, 12, 0.004, seed, batch_size=14)
        assert counts.tolist() == hard_cap_counts(scores, uids, 12, 1, seed).tolist()


# ---------------------------------------------------------------------------- properties


@st.composite
def pools(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Draw scores in steps of 2**-10, small distinct uids, and a permutation."""
    num_examples = draw(st.integers(1, 25))
    steps = draw(
        st.lists(st.integers(-(2**15), 2**15), min_size=num_examples, max_size=num_examples)
    )
    lows = draw(
        st.lists(st.integers(0, 60), min_size=num_examples, max_size=num_examples, unique=True)
    )
    order = draw(st.permutations(range(num_examples)))
    scores = np.array(steps, dtype=np.float64) * 2.0**-10
    return scores, uid_array((low % 7, low) for low in lows), np.array(order)


@HYPOTHESIS
@given(
    pool=pools(),
    num_samples=st.integers(1, 80),
    alpha=st.sampled_from([0.0, 0.15, 0.5, 2.0]),
    part=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32),
)
def test_the_order_of_the_examples_changes_nothing(
    pool: tuple[Array, Array, Array], num_samples: int, alpha: float, part: float, seed: int
) -> None:
    scores, uids, order = pool
    size = max(1, round(part * len(scores)))
    limit = math.ceil(num_samples / len(scores)) + round(3 * part)
    calls: list[Callable[[Array, Array], Array]] = [
        lambda s, u: soft_cap_counts(s, u, num_samples, alpha, seed),
        lambda s, u: soft_cap_counts(s, u, num_samples, alpha, seed, batch_size=size),
        lambda s, u: hard_cap_counts(s, u, num_samples, limit, seed),
        lambda s, u: no_cap_counts(s, u, num_samples, seed),
    ]
    for call in calls:
        assert call(scores[order], uids[order]).tobytes() == call(scores, uids)[order].tobytes()


@HYPOTHESIS
@given(
    pool=pools(),
    num_samples=st.integers(1, 80),
    penalty=st.integers(0, 2**11),
    part=st.floats(0.0, 1.0),
    power=st.integers(-10, 10),
    sign=st.sampled_from([-1.0, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_a_constant_added_to_all_scores_changes_nothing(
    pool: tuple[Array, Array, Array],
    num_samples: int,
    penalty: int,
    part: float,
    power: int,
    sign: float,
    seed: int,
) -> None:
    """All numbers are multiples of 2**-10, so every sum in this test is exact in float64."""
    scores, uids, _ = pool
    shifted = scores + sign * 2.0**power
    assert (shifted - sign * 2.0**power).tobytes() == (scores + 0.0).tobytes()
    alpha = penalty * 2.0**-10
    size = max(1, round(part * len(scores)))
    limit = math.ceil(num_samples / len(scores)) + round(3 * part)
    calls: list[Callable[[Array], Array]] = [
        lambda s: soft_cap_counts(s, uids, num_samples, alpha, seed),
        lambda s: soft_cap_counts(s, uids, num_samples, alpha, seed, batch_size=size),
        lambda s: hard_cap_counts(s, uids, num_samples, limit, seed),
        lambda s: no_cap_counts(s, uids, num_samples, seed),
    ]
    for call in calls:
        assert call(shifted).tolist() == call(scores).tolist()


# ----------------------------------------------------------------------------- bad input


def test_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


FOUR = np.array([0.5, 0.0, -0.5, 1.0])
FOUR_UIDS = uids_for(4)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_fewer_than_one_draw_is_refused(num_samples: int) -> None:
    with pytest.raises(InputError):
        soft_cap_counts(FOUR, FOUR_UIDS, num_samples, 0.15, 1)
    with pytest.raises(InputError):
        hard_cap_counts(FOUR, FOUR_UIDS, num_samples, 2, 1)
    with pytest.raises(InputError):
        no_cap_counts(FOUR, FOUR_UIDS, num_samples, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_that_are_not_finite_are_refused(bad: float, dtype: Any) -> None:
    scores = FOUR.astype(dtype)
    scores[2] = bad
    with pytest.raises(InputError):
        soft_cap_counts(scores, FOUR_UIDS, 5, 0.15, 1)
    with pytest.raises(InputError):
        soft_cap_counts(scores, FOUR_UIDS, 5, 0.15, 1, batch_size=2)
    with pytest.raises(InputError):
        hard_cap_counts(scores, FOUR_UIDS, 5, 2, 1)
    with pytest.raises(InputError):
        no_cap_counts(scores, FOUR_UIDS, 5, 1)


@pytest.mark.parametrize("alpha", [-0.1, -1e-300, float("nan")])
def test_a_negative_penalty_is_refused(alpha: float) -> None:
    for batch_size in (1, 2):
        with pytest.raises(InputError):
            soft_cap_counts(FOUR, FOUR_UIDS, 5, alpha, 1, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [5, 100, 0, -1])
def test_a_round_larger_than_the_pool_or_empty_is_refused(batch_size: int) -> None:
    with pytest.raises(InputError):
        soft_cap_counts(FOUR, FOUR_UIDS, 200, 0.15, 1, batch_size=batch_size)


@pytest.mark.parametrize(("num_samples", "limit"), [(9, 2), (5, 1), (1, 0), (1, -1)])
def test_a_limit_too_low_for_the_draws_is_refused(num_samples: int, limit: int) -> None:
    with pytest.raises(InputError):
        hard_cap_counts(FOUR, FOUR_UIDS, num_samples, limit, 1)


def test_scores_and_uids_must_match() -> None:
    for scores, uids in ((FOUR[:3], FOUR_UIDS), (FOUR, FOUR_UIDS[:3])):
        with pytest.raises(InputError):
            soft_cap_counts(scores, uids, 2, 0.15, 1)
        with pytest.raises(InputError):
            hard_cap_counts(scores, uids, 2, 2, 1)
        with pytest.raises(InputError):
            no_cap_counts(scores, uids, 2, 1)


def test_an_empty_pool_is_refused() -> None:
    scores, uids = FOUR[:0], FOUR_UIDS[:0]
    with pytest.raises(InputError):
        soft_cap_counts(scores, uids, 2, 0.15, 1)
    with pytest.raises(InputError):
        hard_cap_counts(scores, uids, 2, 2, 1)
    with pytest.raises(InputError):
        no_cap_counts(scores, uids, 2, 1)
