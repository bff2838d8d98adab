"""Caption words that a selection takes more or less often than the pool has them.

The log odds ratio with an informative Dirichlet prior of Monroe, Colaresi and Quinn, "Fightin'
Words" (Political Analysis 2008), equations 16, 20 and 22:

    delta_w = log (y_w + a_w) / (n + a_0 - y_w - a_w)  of the selection, less that of the pool
    z_w     = delta_w / sqrt(1 / (y_w + a_w) of the selection + the same of the pool)

with counts y of n words and the pool's frequencies as the prior: a_w = a_0 * frequency. A draw that
repeats an example tells nothing new about words, so the selection's counts are scaled to its
effective number of examples; else every word of an example drawn often would look significant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.threads import map_threads

PRIOR_WORDS = 500.0
"""a_0: how many words the prior counts for."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_LEAST_COUNT = 5.0
_BLOCK = 10_000  # captions between two steps of the progress bar


@dataclass(frozen=True)
class WordCounts:
    """Words of captions: `words` [w], and one entry for each word of each caption [t]."""

    words: list[str]
    word_of: NDArray[np.int64]
    caption_of: NDArray[np.int64]

    def totals(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """How often each word occurs [w] where caption i counts `weights[i]` times."""
        found = np.bincount(self.word_of, weights[self.caption_of], len(self.words))
        return found.astype(np.float64)


@dataclass(frozen=True)
class WordOdds:
    """A word: z-score, odds ratio, and occurrences in a million words of selection and pool."""

    word: str
    z: float
    odds_ratio: float
    selection_rate: float
    pool_rate: float


def count_words(captions: Sequence[str]) -> WordCounts:
    """The words of captions, in lower case: runs of letters, with apostrophes inside.

    Languages that write no spaces come out as whole phrases.
    """
    numbers: dict[str, int] = {}
    word_of: list[int] = []
    lengths: list[int] = []

    def count(start: int) -> None:
        for caption in captions[start : start + _BLOCK]:
            found = _WORD.findall(caption.lower())
            word_of.extend([numbers.setdefault(word, len(numbers)) for word in found])
            lengths.append(len(found))

    map_threads(count, range(0, len(captions), _BLOCK), 1, "counting words", "block")
    caption_of = np.repeat(np.arange(len(captions)), np.array(lengths, np.int64))
    return WordCounts(list(numbers), np.array(word_of, np.int64), caption_of)


def word_odds(counts: WordCounts, drawn: NDArray[np.integer]) -> list[WordOdds]:
    """Words with 5 occurrences or more in the sample, highest z first.

    Args:
        counts: of the sampled captions [n].
        drawn: how often the selection draws each [n].
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
    kept = [number for number in range(len(counts.words)) if pool[number] >= _LEAST_COUNT]
    kept.sort(key=lambda number: (-z[number], counts.words[number]))
    return [
        WordOdds(
            counts.words[number],
            float(z[number]),
            float(np.exp(ratio[number])),
            float(rates[0][number]),
            float(rates[1][number]),
        )
        for number in kept
    ]


def _log_odds(counts: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    rest = counts.sum() + prior.sum() - counts - prior
    # a pool of a single word leaves no other: then its odds are not of interest, only finite
    odds: NDArray[np.float64] = np.log((counts + prior) / np.maximum(rest, 1e-12))
    return odds
