"""Sorting and joining of uids against plain tuples, also where uids are no hashes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacomp_flyt.pool.row_order import RowOrder
from datacomp_flyt.pool.uid_search import argsort_uids, find_uids, sort_uids, sorted_halves
from tests.oracles.selection import uid_array

Pair = tuple[int, int]
NUMBERS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1), st.integers(2**64 - 9, 2**64 - 1))
pairs_of_uids = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40)


@given(pairs_of_uids)
def test_sorts_as_tuples_and_keeps_the_order_of_repeats(pairs: list[Pair]) -> None:
    uids = uid_array(pairs)
    wanted = sorted(range(len(pairs)), key=pairs.__getitem__)
    assert argsort_uids(uids["f0"], uids["f1"]).tolist() == wanted
    high, low, order = sorted_halves(uids, 2)
    assert order.tolist() == wanted
    assert list(zip(high.tolist(), low.tolist(), strict=True)) == sorted(pairs)
    high, low = uids["f0"].copy(), uids["f1"].copy()
    assert sort_uids(high, low).tolist() == wanted
    assert list(zip(high.tolist(), low.tolist(), strict=True)) == sorted(pairs)


@given(pairs_of_uids, pairs_of_uids.filter(len))
def test_finds_as_a_dict(queries: list[Pair], pool: list[Pair]) -> None:
    pool = sorted({*pool, *queries[::2]})
    index = {pair: row for row, pair in enumerate(pool)}
    uids = uid_array(pool)
    found = find_uids(uids["f0"].copy(), uids["f1"].copy(), uid_array(queries))
    assert found.tolist() == [index.get(pair, -1) for pair in queries]


@pytest.mark.parametrize("kind", ["hashes", "one half", "few bits", "counted"])
@pytest.mark.parametrize("share", [1.0, 0.999, 0.5])
def test_long_columns_are_joined_as_by_a_dict(kind: str, share: float) -> None:
    rng = np.random.default_rng(len(kind))
    number = 150_000
    pairs = rng.integers(0, 2**64 - 1, (number, 2), np.uint64, endpoint=True)
    if kind == "one half":
        pairs[:, 0] = 7
    elif kind == "few bits":
        pairs[:, 0] >>= np.uint64(50)
    elif kind == "counted":
        pairs[:, 0], pairs[:, 1] = 0, np.arange(number)
    uids = np.unique(pairs.view("u8,u8")[:, 0])
    pool = uids[rng.random(len(uids)) < share]
    queries = rng.permutation(uids)
    index = {uid: row for row, uid in enumerate(pool.tolist())}
    found = find_uids(pool["f0"].copy(), pool["f1"].copy(), queries, 2)
    assert found.dtype == np.int32
    assert found.tolist() == [index.get(uid, -1) for uid in queries.tolist()]


def test_values_move_between_orders() -> None:
    one = RowOrder(5, np.array([4, 0, 2], np.int32))
    other = RowOrder(5, np.array([1, 2, 4, 3], np.int32))
    values = np.array([40.0, 0.0, 20.0])
    assert one.to_pool(values, -1.0, 2).tolist() == [0, -1, 20, -1, 40]
    assert one.move(values, other, -1.0, 1).tolist() == [-1, 20, 40, -1]
    assert one.move(values, one, -1.0, 1) is values
    pool = RowOrder(5)
    assert pool.move(np.arange(5.0), one, np.nan, 1).tolist() == [4, 0, 2]
    assert (len(one), len(pool)) == (3, 5)
