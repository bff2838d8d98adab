"""Over- and under-represented words, against Monroe, Colaresi and Quinn written out plainly."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from datacomp_flyt.report.words import PRIOR_WORDS, count_words, word_odds

RNG = np.random.default_rng(1)
WORDS = ["dog", "cat", "photo", "sale", "tree"]
CAPTIONS = [" ".join(row) for row in RNG.choice(WORDS, (200, 4)).tolist()]


def plain_odds(selection: Counter[str], pool: Counter[str]) -> dict[str, tuple[float, float]]:
    """Odds ratio and z of each word."""
    n_selection, n_pool = sum(selection.values()), sum(pool.values())
    found = {}
    for word, count in pool.items():
        prior = PRIOR_WORDS * count / n_pool
        y, x = selection[word] + prior, count + prior
        delta = math.log(y / (n_selection + PRIOR_WORDS - y)) - math.log(
            x / (n_pool + PRIOR_WORDS - x)
        )
        found[word] = (math.exp(delta), delta / math.sqrt(1 / y + 1 / x))
    return found


def test_odds_of_a_selection_without_repeats() -> None:
    drawn = np.array(["dog" in caption for caption in CAPTIONS]).astype(np.int64)
    pool = Counter(" ".join(CAPTIONS).split())
    taken = [caption for caption, count in zip(CAPTIONS, drawn, strict=True) if count]
    plain = plain_odds(Counter(" ".join(taken).split()), pool)
    found = word_odds(count_words(CAPTIONS), drawn)
    assert {word.word for word in found} == set(WORDS)
    for word in found:
        assert (word.odds_ratio, word.z) == pytest.approx(plain[word.word])
        assert word.pool_rate == pytest.approx(1e6 * pool[word.word] / 800)
    assert found[0].word == "dog"
    assert [word.z for word in found] == sorted((word.z for word in found), reverse=True)


def test_drawing_all_ten_times_makes_nothing_more_significant() -> None:
    drawn = np.arange(200) % 3
    once = word_odds(count_words(CAPTIONS), drawn)
    again = word_odds(count_words(CAPTIONS), 10 * drawn)
    assert [word.z for word in again] == pytest.approx([word.z for word in once])


def test_the_pool_itself_prefers_no_word() -> None:
    found = word_odds(count_words(CAPTIONS), np.ones(200, np.int64))
    assert [word.z for word in found] == pytest.approx([0] * 5, abs=1e-9)


def test_words_are_runs_of_letters_in_lower_case() -> None:
    counted = count_words(["Don't STOP, 42 x2 Straße 東京", "", "stop_it"])
    assert counted.words == ["don't", "stop", "x", "straße", "東京", "it"]
    assert counted.totals(np.array([1.0, 1.0, 3.0])).tolist() == [1, 4, 1, 1, 1, 3]


@pytest.mark.parametrize("captions", [[], ["", "12 34"], ["word"] * 9])
def test_captions_without_a_choice_of_words(captions: list[str]) -> None:
    found = word_odds(count_words(captions), np.ones(len(captions), np.int64))
    assert all(math.isfinite(word.z) for word in found)
    assert len(found) == len({"word"} & set(captions))


def test_rare_words_are_left_out() -> None:
    found = word_odds(count_words(["dog"] * 6 + ["cat"] * 4), np.ones(10, np.int64))
    assert [word.word for word in found] == ["dog"]
