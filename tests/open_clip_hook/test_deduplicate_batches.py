"""Repeats move to later batches, and no example is lost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from datacomp_flyt.open_clip_hook.deduplicate_batches import Batch, deduplicate_batches
from tests.open_clip_hook.made import batch_of


def numbers_of(batch: Batch) -> list[int]:
    numbers = batch.texts[:, 0].tolist()
    assert batch.images[:, 0, 0, 0].tolist() == numbers
    assert batch.uids.tolist() == batch_of(numbers).uids.tolist()
    return numbers


def spread(batches: list[list[int]], accum_freq: int = 1) -> tuple[list[list[int]], int]:
    num_moves = [0]
    source: Iterator[Batch] = map(batch_of, batches)
    return [
        numbers_of(batch) for batch in deduplicate_batches(source, accum_freq, num_moves)
    ], num_moves[0]


def test_a_repeat_is_exchanged_with_the_next_batch() -> None:
    assert spread([[1, 2, 1], [4, 5, 6]]) == ([[1, 2, 4], [1, 5, 6]], 1)


def test_the_replacement_is_not_a_repeat() -> None:
    assert spread([[1, 2, 1], [1, 2, 6]]) == ([[1, 2, 6], [1, 2, 1]], 1)
    assert spread([[1, 1, 1], [4, 4, 6]]) == ([[1, 4, 6], [1, 4, 1]], 2)


def test_batches_of_one_step_count_together() -> None:
    batches, num_moves = spread([[1, 2], [2, 3], [4, 5], [6, 7]], accum_freq=2)
    assert batches == [[1, 2], [4, 3], [2, 5], [6, 7]]
    assert num_moves == 1


def test_distinct_batches_are_unchanged() -> None:
    batches = [[1, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert spread(batches) == (batches, 0)
    assert spread([]) == ([], 0)


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=4, max_size=4), max_size=9), st.integers(1, 3)
)
def test_every_example_comes_out_as_often_as_it_went_in(
    batches: list[list[int]], accum_freq: int
) -> None:
    given_batches = [list(batch) for batch in batches]
    spread_batches, num_moves = spread(batches, accum_freq)
    assert Counter(itertools.chain(*spread_batches)) == Counter(itertools.chain(*given_batches))
    assert [len(batch) for batch in spread_batches] == [len(batch) for batch in given_batches]

    def repeats(batches: list[list[int]]) -> int:
        starts = range(0, len(batches), accum_freq)
        steps = [[*itertools.chain(*batches[start : start + accum_freq])] for start in starts]
        return sum(len(step) - len(set(step)) for step in steps)

    assert num_moves or spread_batches == given_batches
    assert repeats(spread_batches[:1]) <= repeats(given_batches[:1])


def test_many_copies_spread_over_many_batches() -> None:
    """Each batch keeps one of the 21 copies in the first batch."""
    batches = [[0] * 21 + list(range(1, 12))]
    batches += [list(range(32 * n, 32 * n + 32)) for n in range(1, 30)]
    spread_batches, num_moves = spread(batches)
    assert all(len(set(batch)) == 32 for batch in spread_batches)
    assert num_moves == 20 * 21 // 2
