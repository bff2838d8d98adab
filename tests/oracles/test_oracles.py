"""The oracles against one another, against values by hand and against the paper."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from tests.oracles import algorithm2, mixing, selection
from tests.oracles.algorithm2 import Counts
from tests.samplers.law import assert_follows, p_value, tally

# Scores are k * ln 2, so that the weights 2**k are exact fractions.
POWERS = (3, 1, 0, -2)
SCORES = [k * math.log(2.0) for k in POWERS]


def brute_force(
    powers: Counts, num_samples: int, penalty_power: int, size: int
) -> dict[Counts, Fraction]:
    """Compute the law of Algorithm 2 in exact fractions, over every order of draws."""
    law: dict[Counts, Fraction] = {(0,) * len(powers): Fraction(1)}
    left = num_samples
    while left > 0:
        following: dict[Counts, Fraction] = {}
        for counts, probability in law.items():
            weights = [
                Fraction(2) ** (k - penalty_power * n) for k, n in zip(powers, counts, strict=True)
            ]
            p = [weight / sum(weights) for weight in weights]
            for order in itertools.permutations(range(len(powers)), min(size, left)):
                chance, gone = probability, Fraction(0)
                for i in order:
                    chance *= p[i] / (1 - gone)
                    gone += p[i]
                after = tuple(n + (i in order) for i, n in enumerate(counts))
                following[after] = following.get(after, Fraction(0)) + chance
        law = following
        left -= min(size, left)
    return law


@pytest.mark.parametrize(("num_samples", "size"), [(5, 1), (5, 2), (7, 3), (2, 3), (8, 4), (6, 4)])
@pytest.mark.parametrize("penalty_power", [0, 1, 3])
def test_exact_soft_cap_equals_brute_force_in_fractions(
    num_samples: int, size: int, penalty_power: int
) -> None:
    exact = algorithm2.exact_soft_cap_distribution(
        SCORES, num_samples, penalty_power * math.log(2.0), size
    )
    reference = brute_force(POWERS, num_samples, penalty_power, size)
    assert sum(reference.values()) == 1
    assert set(exact) == set(reference)
    for counts, probability in reference.items():
        assert exact[counts] == pytest.approx(float(probability), rel=1e-12)


def test_exact_soft_cap_by_hand() -> None:
    third = math.log(3.0)
    law = algorithm2.exact_soft_cap_distribution([third, 0.0], 2, third, 1)
    # the first example has 3/4 in draw 1; in draw 2 it has 1/2 if it was drawn, else 9/10
    assert law[(2, 0)] == pytest.approx(3 / 4 * 1 / 2)
    assert law[(1, 1)] == pytest.approx(3 / 4 * 1 / 2 + 1 / 4 * 9 / 10)
    assert law[(0, 2)] == pytest.approx(1 / 4 * 1 / 10)


def test_exact_laws_sum_to_one_and_have_the_right_support() -> None:
    for law in (
        algorithm2.exact_soft_cap_distribution(SCORES, 6, 0.15, 1),
        algorithm2.exact_soft_cap_distribution(SCORES, 7, 0.5, 3),
        algorithm2.exact_soft_cap_distribution([0.0, 1e4, -1e4], 5, 2.0, 2),
        algorithm2.exact_hard_cap_distribution(SCORES, 6, 2),
        algorithm2.exact_no_cap_distribution(SCORES, 6),
    ):
        assert math.fsum(law.values()) == pytest.approx(1.0, abs=1e-12)
        assert len({sum(counts) for counts in law}) == 1
    assert max(map(max, algorithm2.exact_soft_cap_distribution(SCORES, 7, 0.5, 3))) == 3
    assert max(map(max, algorithm2.exact_hard_cap_distribution(SCORES, 6, 2))) == 2


def test_one_draw_per_round_gives_the_sequential_law() -> None:
    law: dict[Counts, float] = {(0, 0, 0, 0): 1.0}
    for _ in range(5):
        following: dict[Counts, float] = {}
        for counts, probability in law.items():
            p = algorithm2.softmax(np.array(SCORES) - 0.5 * np.array(counts))
            for i in range(4):
                after = tuple(n + (i == j) for j, n in enumerate(counts))
                following[after] = following.get(after, 0.0) + probability * float(p[i])
        law = following
    exact = algorithm2.exact_soft_cap_distribution(SCORES, 5, 0.5, 1)
    assert exact == pytest.approx(law, rel=1e-12)


def test_no_penalty_and_an_idle_limit_are_both_the_multinomial_law() -> None:
    multinomial = algorithm2.exact_no_cap_distribution(SCORES, 5)
    soft = algorithm2.exact_soft_cap_distribution(SCORES, 5, 0.0, 1)
    hard = algorithm2.exact_hard_cap_distribution(SCORES, 5, 5)
    assert soft == pytest.approx(multinomial, rel=1e-10)
    assert hard == pytest.approx(multinomial, rel=1e-10)
    p = algorithm2.softmax(np.array(SCORES))
    for counts, probability in multinomial.items():
        assert probability == pytest.approx(float(stats.multinomial.pmf(counts, 5, p)), rel=1e-10)


def test_a_limit_of_one_is_one_round_of_soft_cap() -> None:
    assert algorithm2.exact_hard_cap_distribution(SCORES, 3, 1) == pytest.approx(
        algorithm2.exact_soft_cap_distribution(SCORES, 3, 0.7, 3), rel=1e-12
    )


@pytest.mark.parametrize(
    ("num_samples", "size", "penalty"), [(6, 1, 0.5), (7, 2, 0.5), (8, 3, 2.0)]
)
def test_naive_soft_cap_follows_the_exact_law(num_samples: int, size: int, penalty: float) -> None:
    rng = np.random.default_rng(20 + size)
    observed = tally(
        lambda _: algorithm2.naive_soft_cap(SCORES, num_samples, penalty, rng, size), range(10_000)
    )
    assert_follows(
        observed, algorithm2.exact_soft_cap_distribution(SCORES, num_samples, penalty, size)
    )


def test_naive_hard_cap_follows_the_exact_law() -> None:
    rng = np.random.default_rng(31)
    observed = tally(lambda _: algorithm2.naive_hard_cap(SCORES, 6, 2, rng), range(10_000))
    assert_follows(observed, algorithm2.exact_hard_cap_distribution(SCORES, 6, 2))


def test_naive_no_cap_follows_the_exact_law() -> None:
    rng = np.random.default_rng(32)
    observed = tally(lambda _: algorithm2.naive_no_cap(SCORES, 6, rng), range(10_000))
    assert_follows(observed, algorithm2.exact_no_cap_distribution(SCORES, 6))


def test_p_values_of_the_true_law_are_not_too_small() -> None:
    """Under the law itself the p-values are near uniform, as the threshold assumes."""
    law = algorithm2.exact_soft_cap_distribution(SCORES, 6, 0.5, 2)
    vectors, probabilities = list(law), np.array(list(law.values()))
    rng = np.random.default_rng(5)
    draws = rng.multinomial(4_000, probabilities / probabilities.sum(), size=2_000)
    p_values = np.array([p_value(dict(zip(vectors, map(int, d), strict=True)), law) for d in draws])
    for level in (0.5, 0.1, 0.01):
        share, noise = float(np.mean(p_values <= level)), math.sqrt(level / 2_000)
        assert share <= level + 5 * noise
    assert float(np.mean(p_values <= 0.5)) >= 0.2


def test_p_value_is_zero_for_impossible_counts_and_small_for_unlikely_ones() -> None:
    assert p_value({(1, 1): 99, (2, 0): 1}, {(1, 1): 1.0}) == 0.0
    assert p_value({(1, 1): 97, (2, 0): 3}, {(1, 1): 1.0 - 1e-9, (2, 0): 1e-9}) < 1e-12
    assert p_value({(1, 1): 100}, {(1, 1): 1.0 - 1e-9, (2, 0): 1e-9}) == 1.0


def test_in_weighted_weights_of_the_paper() -> None:
    """The weights are those of FLYT, appendix C.5, for r = 2 and the accuracies of Table 2."""
    weights = mixing.in_weighted_weights(mixing.PAPER_IMAGENET_ACCURACIES, 2.0)
    expected = {
        "vit-b-32": 1.2,
        "vit-l-14": 1.0,
        "DFN-Base": 1.4,
        "DFN-FT": 2.0,
        "hype_lorentzian_distance": 1.56,
        "hype_image_specificity": 1.56,
        "hype_text_specificity": 1.56,
        "negCLIPLoss": 1.8533,
        "normsim_inf": 1.8533,
        "IN1K-Classifier": 1.0133,
        "CC2M-Classifier": 1.2667,
        "FLYT": 1.6533,
    }
    assert weights == pytest.approx(expected, abs=5e-5)
    for ratio in (2.0, 4.0, 8.0, 16.0):
        weights = mixing.in_weighted_weights(mixing.PAPER_IMAGENET_ACCURACIES, ratio)
        assert max(weights.values()) / min(weights.values()) == pytest.approx(ratio)


def test_mixing_by_hand() -> None:
    columns = {"a": [1.0, 3.0], "b": [10.0, 30.0]}
    assert mixing.standardize([1.0, 3.0]) == [-1.0, 1.0]
    assert mixing.plain_sum(columns) == [11.0, 33.0]
    assert mixing.standardized_sum(columns) == [-2.0, 2.0]
    assert mixing.m_flyt(columns, {"a": 0.5, "b": -2.0}, bias=1.0) == [2.5, -0.5]
    assert mixing.in_weighted_sum(columns, {"a": 0.2, "b": 0.3}, 2.0) == pytest.approx([-3.0, 3.0])


def test_selection_by_hand() -> None:
    pairs = [selection.parse_uid(text) for text in ("f" * 32, "0" * 31 + "1", "0" * 15 + "1" * 17)]
    assert pairs == [(2**64 - 1, 2**64 - 1), (0, 1), (1, 0x1111111111111111)]
    assert [selection.parse_uid(selection.format_uid(pair)) for pair in pairs] == pairs
    assert selection.top_fraction([5.0, 5.0, 5.0], pairs, 0.67) == [0, 1, 1]
    assert selection.top_fraction([1.0, 0.0, 2.0], pairs, 1.0) == [1, 1, 1]
    assert selection.top_fraction_keep_ties([5.0, 5.0, 4.0, 3.0], 0.25) == [1, 1, 0, 0]
    assert selection.top_fraction_keep_ties([5.0, 4.0, 4.0, 3.0], 0.25) == [1, 1, 1, 0]
    subset = selection.subset_array(pairs, [1, 2, 0])
    assert subset.dtype == selection.UID_DTYPE
    assert subset.tolist() == [(0, 1), (0, 1), (2**64 - 1, 2**64 - 1)]
