"""Finds caption words that a selection draws more or less often than the pool has them.

The log odds ratio with an informative Dirichlet prior of Monroe, Colaresi and Quinn, "Fightin'
Words" (Political Analysis 2008), equations 16, 20 and 22:

    delta_w = log (y_w + a_w) / (n + a_0 - y_w - a_w)  of the selection, less that of the pool
    z_w     = delta_w / sqrt(1 / (y_w + a_w) of the selection + the same of the pool)

with counts y of n words and the pool's frequencies as the prior: a_w = a_0 * frequency. A repeated
draw of an example adds no evidence about words. Therefore the selection's counts are scaled to its
effective number of examples; otherwise each word of an example drawn often would look significant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.threads import map_threads

PRIOR_WORDS = 500.0
"""a_0: the number of words that the prior counts as."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_LEAST_COUNT = 5.0
_BLOCK = 10_000  # captions between two steps of the progress bar


@dataclass(frozen=True)
class WordCounts:
    """Words of captions.

    Attributes:
        words: the distinct words [w].
        word_of, caption_of: the indices of the word and the caption of each occurrence [t].
    """

    words: list[str]
    word_of: NDArray[np.int64]
    caption_of: NDArray[np.int64]

    def totals(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Count each word [w], where caption i counts `weights[i]` times."""
        totals = np.bincount(self.word_of, weights[self.caption_of], len(self.words))
        return totals.astype(np.float64)


@dataclass(frozen=True)
class WordOdds:
    """A word: its z-score, odds ratio, and occurrences per million words of selection and pool."""

    word: str
    z: float
    odds_ratio: float
    selection_rate: float
    pool_rate: float


def count_words(captions: Sequence[str]) -> WordCounts:
    """Count the words of captions, in lower case: runs of letters, with apostrophes inside.

    Languages that write no spaces give whole phrases.
    """
    index_of: dict[str, int] = {}
    word_of: list[int] = []
    lengths: list[int] = []

    def count(start: int) -> None:
        for caption in captions[start : start + _BLOCK]:
            words = _WORD.findall(caption.lower())
            word_of.extend([index_of.setdefault(word, len(index_of)) for word in words])
            lengths.append(len(words))

    map_threads(count, range(0, len(captions), _BLOCK), 1, "counting words", "block")
    caption_of = np.repeat(np.arange(len(captions)), np.array(lengths, np.int64))
    return WordCounts(list(index_of), np.array(word_of, np.int64), caption_of)


def word_odds(counts: WordCounts, drawn: NDArray[np.integer]) -> list[WordOdds]:
    """Compute the odds of words with 5 occurrences or more in the sample, highest z first.

    Args:
        counts: the words of the sampled captions [n].
        drawn: the number of draws of each caption in the selection [n].
    """
    weights = drawn.astype(np.float64)
    if not weights.any() or not len(counts.words):
        return []
    pool = counts.totals(np.ones(len(drawn)))
    # sum of the weights becomes (Σc)² / Σc², the effective number of examples
    selection = counts.totals(weights * (weights.sum() / np.square(weights).sum()))
    prior = PRIOR_WORDS * pool / pool.sum()
    ratio = _log_odds(selection, prior) - _log_odds(pool, prior)
    z = ratio / np.sqrt(1 / (selection + prior) + 1 / (pool + prior))
    rates = [1e6 * group / max(group.sum(), 1e-12) for group in (selection, pool)]
    kept = np.flatnonzero(pool >= _LEAST_COUNT).tolist()
    kept.sort(key=lambda word: (-z[word], counts.words[word]))
    return [
        WordOdds(
            counts.words[word],
            float(z[word]),
            float(np.exp(ratio[word])),
            float(rates[0][word]),
            float(rates[1][word]),
        )
        for word in kept
    ]


def _log_odds(counts: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    rest = counts.sum() + prior.sum() - counts - prior
    # in a pool of a single word the rest is empty; the odds then only have to be finite
    odds: NDArray[np.float64] = np.log((counts + prior) / np.maximum(rest, 1e-12))
    return odds
