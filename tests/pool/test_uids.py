"""uids are decoded as by DataComp, `int(uid[:16], 16), int(uid[16:32], 16)`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacomp_flyt.pool.uids import UID_DTYPE, InvalidUid, decode_uids, encode_uids, format_uid
from tests.conftest import hex_uids
from tests.oracles import selection

HEX = "0123456789abcdef"
GOOD = "0123456789abcdef" * 2
uid_strings = st.text(HEX + "ABCDEF", min_size=32, max_size=32)
halves = st.integers(0, 2**64 - 1)


def plain(uids: Sequence[str]) -> list[tuple[int, int]]:
    return [selection.parse_uid(uid) for uid in uids]


@given(st.lists(uid_strings, max_size=40))
def test_decodes_as_the_plain_parser(uids: list[str]) -> None:
    decoded = decode_uids(pa.array(uids, pa.string()))
    assert decoded.dtype == UID_DTYPE
    assert decoded.tolist() == plain(uids)


@given(st.lists(st.tuples(halves, halves), max_size=40))
def test_encodes_as_the_plain_formatter_and_back(pairs: list[tuple[int, int]]) -> None:
    array = selection.uid_array(pairs)
    strings = encode_uids(array)
    assert strings.to_pylist() == [selection.format_uid(pair) for pair in pairs]
    assert [format_uid(uid) for uid in array] == strings.to_pylist()
    assert decode_uids(strings).tolist() == pairs


@given(
    st.text(st.characters(max_codepoint=0x17F, blacklist_categories=("Cs",)), max_size=40),
    st.integers(0, 3),
)
def test_takes_what_is_hexadecimal_and_nothing_else(value: str, row: int) -> None:
    uids = [GOOD] * 4
    uids[row] = value
    if len(value) == 32 and set(value.lower()) <= set(HEX) and value.isascii():
        assert decode_uids(pa.array(uids)).tolist() == plain(uids)
    else:
        with pytest.raises(InvalidUid) as caught:
            decode_uids(pa.array(uids))
        assert (caught.value.row, caught.value.value) == (row, value)


@pytest.mark.parametrize("position", [0, 7, 8, 15, 16, 24, 31])
def test_every_ascii_character_is_a_digit_or_refused(position: int) -> None:
    for code in range(128):
        uid = GOOD[:position] + chr(code) + GOOD[position + 1 :]
        if chr(code).lower() in HEX:
            assert decode_uids(pa.array([uid])).tolist() == plain([uid])
        else:
            with pytest.raises(InvalidUid):
                decode_uids(pa.array([GOOD, uid, GOOD]))


# 32 bytes each, but some of them no ASCII characters
@pytest.mark.parametrize(
    "wrong", ["é" * 16, GOOD[:30] + "é", GOOD[:29] + "€", "\uff11" * 10 + "00"]
)
def test_characters_beyond_ascii_are_refused(wrong: str) -> None:
    assert len(wrong.encode()) == 32
    with pytest.raises(InvalidUid) as caught:
        decode_uids(pa.array([GOOD, wrong]))
    assert (caught.value.row, caught.value.value) == (1, wrong)


def dictionary(uids: Sequence[str | None]) -> pa.Array:
    return pa.array(uids).dictionary_encode()


def large(uids: Sequence[str | None]) -> pa.Array:
    return pa.array(uids, pa.large_string())


def in_chunks(uids: Sequence[str | None]) -> pa.ChunkedArray:
    cuts = [0, 1, 1, len(uids) // 2, len(uids)]
    parts = [pa.array(uids[a:b], pa.string()) for a, b in itertools.pairwise(cuts)]
    return pa.chunked_array(parts)


def mixed_case(uids: Sequence[str | None]) -> pa.Array:
    return pa.array([uid and uid[:9].upper() + uid[9:] for uid in uids])


FORMS = [pa.array, large, dictionary, in_chunks, mixed_case]
Form = Callable[[Sequence[str | None]], pa.Array]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("start", "stop"), [(0, 50), (7, 50), (0, 13), (11, 12), (20, 20)])
def test_arrow_forms_slices_and_offsets(form: Form, start: int, stop: int) -> None:
    uids = hex_uids(50)
    column = form(uids).slice(start, stop - start)
    assert decode_uids(column).tolist() == plain(uids[start:stop])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [None, "", GOOD[:-1], GOOD + "0", GOOD[:-1] + "g", GOOD + GOOD])
@pytest.mark.parametrize("row", [0, 1, 24, 49])
def test_the_wrong_row_is_named_in_every_form(form: Form, wrong: str | None, row: int) -> None:
    uids: list[str | None] = [*hex_uids(50), "behind the slice"]
    uids[row] = wrong
    column = form(["before the slice", *uids]).slice(1, 50)
    with pytest.raises(InvalidUid) as caught:
        decode_uids(column)
    assert caught.value.row == row
    assert (caught.value.value or "").lower() == (wrong or "")


def test_the_first_of_several_wrong_rows_is_named() -> None:
    with pytest.raises(InvalidUid) as caught:
        decode_uids(pa.array([GOOD, None, "short", GOOD]))
    assert caught.value.row == 1
    with pytest.raises(InvalidUid) as caught:
        decode_uids(pa.array([GOOD, "short", None, "z" * 32]))
    assert caught.value.row == 1


@pytest.mark.parametrize("column", [pa.array([1, 2]), pa.array([b"0" * 31]), pa.array([None])])
def test_a_column_of_no_uids_is_refused(column: pa.Array) -> None:
    with pytest.raises(InvalidUid) as caught:
        decode_uids(column)
    assert caught.value.row == 0


@pytest.mark.parametrize("number", [(1 << 14) - 1, 1 << 14, (1 << 15) + 3])
def test_long_columns_cross_block_bounds(number: int) -> None:
    rng = np.random.default_rng(number)
    array = rng.integers(0, 2**64, (number, 2), np.uint64).view(UID_DTYPE)[:, 0]
    strings = encode_uids(array)
    assert np.array_equal(decode_uids(strings), array)
    uids = strings.to_pylist()
    for row in {0, number // 2, (1 << 14) - 1, number - 1} & set(range(number)):
        assert uids[row] == selection.format_uid(array[row].tolist())
    uids[number - 1] = "x" * 32
    with pytest.raises(InvalidUid) as caught:
        decode_uids(pa.array(uids))
    assert caught.value.row == number - 1


def test_encodes_arrays_that_are_not_contiguous() -> None:
    array = selection.uid_array(plain(hex_uids(9)))
    assert encode_uids(array[::-2]).to_pylist() == hex_uids(9)[::-2]
