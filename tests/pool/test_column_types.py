"""Score columns of every Arrow type are read exactly or refused."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.score_values import fits_float32, is_number, to_float32, to_floats
from tests.baselines_plugin.job import Job, in_process
from tests.conftest import make_pool, refusal, take, write_parquet

OLD_PYARROW = int(pa.__version__.split(".")[0]) < 15  # cannot write float16 and durations


def floats(array: pa.Array, dtype: str = "f8") -> np.ndarray:
    return to_floats(array, np.dtype(dtype), "FILE", "s", 100)


def decimals(values: list[Any], precision: int, scale: int) -> pa.Array:
    kind = pa.decimal128 if precision <= 38 else pa.decimal256
    exact = [None if value is None else Decimal(value) for value in values]
    return pa.array(exact, kind(precision, scale))


# -------------------------------------------------------------------------------- values


INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integers_of_every_width(kind: pa.DataType) -> None:
    limits = np.iinfo(kind.to_pandas_dtype())
    low, high = max(int(limits.min), -(2**53)), min(int(limits.max), 2**53)
    values = [0, 1, high, None, low, high - 1]
    assert is_number(kind)
    assert not fits_float32(kind)
    for start in range(3):
        found = floats(pa.array(values, kind).slice(start))
        wanted = [math.nan if value is None else float(value) for value in values[start:]]
        assert np.array_equal(found, wanted, equal_nan=True)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2**53 + 1, pa.int64()),
        (-(2**53) - 1, pa.int64()),
        (2**63 - 1, pa.int64()),
        (1 - 2**63, pa.int64()),
        (2**64 - 1, pa.uint64()),
        (2**63 + 1, pa.uint64()),
        (2**60 + 7, pa.uint64()),
    ],
)
@pytest.mark.parametrize("row", [0, 2])
def test_an_integer_that_no_float_equals_is_refused(
    value: int, kind: pa.DataType, row: int
) -> None:
    values: list[int | None] = [None, 2**53, 5]
    values[row] = value
    with pytest.raises(ValueError, match=rf"FILE row {100 + row} has {value} in column 's'"):
        floats(pa.array(values, kind))


@pytest.mark.parametrize("value", [2**53, 2**60, -(2**63), 2**62 + 2**40, 2**53 + 2])
def test_large_integers_that_a_float_equals_are_read(value: int) -> None:
    assert floats(pa.array([value, None])).tolist()[0] == value


@pytest.mark.parametrize(
    ("value", "scale"),
    [("0.3", 1), ("-12.345", 3), ("99999999999999999.9", 1), ("0.1", 30), ("1e-22", 22),
     ("123456789.123456789", 9), ("-0.007", 3), ("9007199254740993", 0)],
)  # fmt: skip
@pytest.mark.parametrize("precision", [38, 60])
def test_decimals_become_the_nearest_float(value: str, scale: int, precision: int) -> None:
    found = floats(decimals(["0", value, None, value], precision, scale).slice(1))
    assert found[0] == found[2] == float(Decimal(value))
    assert math.isnan(found[1])


@given(st.lists(st.integers(-(10**18), 10**18), min_size=1, max_size=20), st.integers(0, 18))
def test_any_decimal_is_rounded_once(unscaled: list[int], scale: int) -> None:
    values = [Decimal(value).scaleb(-scale) for value in unscaled]
    found = floats(pa.array(values, pa.decimal128(38, scale)))
    for value, exact in zip(found.tolist(), values, strict=True):
        off = abs(Fraction(value) - Fraction(exact))
        for other in (np.nextafter(value, -np.inf), np.nextafter(value, np.inf)):
            assert off <= abs(Fraction(float(other)) - Fraction(exact))


@pytest.mark.skipif(not hasattr(pa, "decimal32"), reason="decimals of 128 bits and more only")
@pytest.mark.parametrize("kind", ["decimal32", "decimal64"])
def test_narrow_decimals(kind: str) -> None:
    values = [Decimal("0.3"), None, Decimal("-1.25"), Decimal("99999.99")]
    found = floats(pa.array(values, getattr(pa, kind)(7, 2)).slice(1))
    assert np.array_equal(found, [math.nan, -1.25, 99999.99], equal_nan=True)


@pytest.mark.parametrize("values", [[0.5, 0.25], [5, 2**60], [Decimal("0.3"), Decimal("0.1")]])
def test_dictionaries_of_numbers(values: list[Any]) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.int8()), pa.array(values))
    first, second = map(float, values)
    assert is_number(column.type)
    assert np.array_equal(floats(column), [second, first, math.nan, second], equal_nan=True)
    assert np.array_equal(floats(column.slice(1, 2)), [first, math.nan], equal_nan=True)


@pytest.mark.skipif(not hasattr(pc, "run_end_encode"), reason="no run-end-encoded arrays")
@pytest.mark.parametrize("values", [[0.5, 0.5, None, 2.0], [3, 3, None, 4]])
def test_run_end_encoded_numbers(values: list[Any]) -> None:
    column = pc.run_end_encode(pa.array(values))
    wanted = [math.nan if value is None else value for value in values]
    assert is_number(column.type)
    assert np.array_equal(floats(column), wanted, equal_nan=True)


def test_floats_keep_their_bits() -> None:
    values = np.array([0.1, np.nan, -np.inf, 5e-324])
    assert floats(pa.array(values)).tobytes() == values.tobytes()
    single = values.astype(np.float32)
    assert floats(pa.array(single), "f4").tobytes() == single.tobytes()
    half = pa.array(np.array([0.1, 2.0], np.float16))
    assert fits_float32(half.type)
    assert floats(half, "f4").tolist() == np.array([0.1, 2], np.float16).tolist()
    assert np.isnan(floats(pa.nulls(3), "f4")).all()


@pytest.mark.parametrize("value", [1e39, -1e300, 3.5e38, np.finfo(np.float64).max])
def test_float32_loses_no_finite_score(value: float) -> None:
    values = np.array([0.5, np.inf, np.nan, value])
    with pytest.raises(ValueError, match=r"NAME has 1 scores that float32 cannot hold, such as"):
        to_float32(values, "NAME")
    assert to_float32(values[:3], "NAME").tolist()[:2] == [0.5, np.inf]


# ------------------------------------------------------------------------------ in files


POOL = make_pool(60)
VALUES = np.random.default_rng(2).normal(0, 1, 60).round(3)
SCS = ("--name", "scs", "--column", "vit-l-14", "--num_samples", 200, "--repetition_penalty", 0.4)
THREE = [Decimal(f"{value:.3f}") for value in VALUES.tolist()]
CAST: dict[str, tuple[pa.Array, np.ndarray]] = {
    "decimal128": (pa.array(THREE, pa.decimal128(9, 3)), VALUES),
    "decimal256": (pa.array(THREE, pa.decimal256(50, 3)), VALUES),
    "int8": (pa.array((VALUES * 20).astype(np.int8)), (VALUES * 20).astype(np.int8)),
    "uint64": (pa.array(np.arange(60, dtype=np.uint64)), np.arange(60.0)),
    "dictionary of doubles": (pa.array(VALUES).dictionary_encode(), VALUES),
    "dictionary of decimals": (
        pa.DictionaryArray.from_arrays(
            pa.array(range(60), pa.int8()), pa.array(THREE, pa.decimal128(9, 3))
        ),
        VALUES,
    ),
    "double": (pa.array(VALUES), VALUES),
}


def job_with(folder: Path, column: Any, name: str = "vit-l-14") -> Job:
    """A pool whose metadata has a column of the same meaning with other values."""
    job = Job(POOL._replace(scores={"uid": POOL.uids}), folder).write()
    write_parquet(job.scores / "part-00000.parquet", {"uid": POOL.uids, name: column})
    return job


@pytest.mark.parametrize(("column", "values"), CAST.values(), ids=CAST.keys())
def test_the_table_s_column_is_read_as_double(
    tmp_path: Path, column: pa.Array, values: np.ndarray
) -> None:
    first = job_with(tmp_path / "double", values.astype(np.float64))
    first.select(*SCS)
    job = job_with(tmp_path / "typed", column)
    assert "from --scores_dir" in job.select(*SCS)
    assert job.save_path.read_bytes() == first.save_path.read_bytes()


REFUSED = {
    "string": pa.array([f"{value:.3f}" for value in VALUES]),
    "large_string": pa.array(["1.0"] * 60, pa.large_string()),
    "dictionary": pa.array([f"{value:.3f}" for value in VALUES]).dictionary_encode(),
    "bool": pa.array([True, False] * 30),
    "list": pa.array([[value] for value in VALUES.tolist()]),
    "struct": pa.array([{"score": value} for value in VALUES.tolist()]),
    "timestamp": pa.array(range(60), pa.timestamp("us")),
    "date32": pa.array(range(60), pa.date32()),
    "time64": pa.array(range(60), pa.time64("us")),
    "binary": pa.array([b"1.0"] * 60),
    "fixed_size_binary": pa.array([b"12345678"] * 60, pa.binary(8)),
}
if not OLD_PYARROW:
    REFUSED["duration"] = pa.array(range(60), pa.duration("us"))


@pytest.mark.parametrize(("kind", "column"), REFUSED.items(), ids=REFUSED.keys())
def test_other_types_are_refused_with_file_column_and_type(
    tmp_path: Path, kind: str, column: pa.Array
) -> None:
    assert not is_number(column.type)
    job = job_with(tmp_path, column)
    code, _, stderr = in_process(*job.flags(*SCS))
    assert code == 2
    file = job.scores / "part-00000.parquet"
    assert f"{file} has column 'vit-l-14' of type {kind}" in stderr
    assert "float or double" in stderr
    assert not job.save_path.exists()


@pytest.mark.parametrize("kind", ["string", "bool", "list", "timestamp", "dictionary", "binary"])
@pytest.mark.parametrize("in_work_dir", [False, True])
def test_another_type_in_one_of_several_files_is_no_gap(
    tmp_path: Path, kind: str, in_work_dir: bool
) -> None:
    job = job_with(tmp_path, VALUES)
    first, second = range(40), range(40, 60)
    every = {"uid": POOL.uids, "vit-l-14": VALUES}
    write_parquet(job.scores / "part-00000.parquet", take(every, first))
    odd = {"uid": POOL.uids[40:], "vit-l-14": REFUSED[kind].slice(40)}
    write_parquet(job.scores / "part-00001.parquet", odd)
    assert len(second) == len(odd["uid"])
    more = ("--work_dir", tmp_path / "work") if in_work_dir else ()
    code, _, stderr = in_process(*job.flags(*SCS, "--allow_partial_scores", *more))
    assert code == 2
    assert f"{job.scores / 'part-00001.parquet'} has column 'vit-l-14' of type {kind}" in stderr
    assert "(other files: double)" in stderr


@pytest.mark.parametrize("in_work_dir", [False, True])
def test_a_large_integer_is_named_with_its_file_and_row(tmp_path: Path, in_work_dir: bool) -> None:
    column = [*range(57), 2**53 + 1, 2**53 + 3, None]
    job = job_with(tmp_path, column)
    more = ("--work_dir", tmp_path / "work") if in_work_dir else ()
    code, _, stderr = in_process(*job.flags(*SCS, "--drop_nonfinite", *more))
    assert code == 2
    where = f"{job.scores / 'part-00000.parquet'} row 57 has 9007199254740993"
    assert f"{where} in column 'vit-l-14'" in stderr


@pytest.mark.parametrize("in_work_dir", [False, True])
def test_a_column_of_nulls_in_one_file_is_without_scores(tmp_path: Path, in_work_dir: bool) -> None:
    single = VALUES.astype(np.float32)
    column = pa.array([*single[:40].tolist(), *[None] * 20], pa.float32())
    first = job_with(tmp_path / "floats", column)
    first.select(*SCS, "--drop_nonfinite")
    job = job_with(tmp_path / "nulls", single)
    every = {"uid": POOL.uids, "vit-l-14": single}
    write_parquet(job.scores / "part-00000.parquet", take(every, range(40)))
    empty = {"uid": POOL.uids[40:], "vit-l-14": pa.nulls(20)}
    write_parquet(job.scores / "part-00001.parquet", empty)
    more = ("--work_dir", tmp_path / "work") if in_work_dir else ()
    job.select(*SCS, "--drop_nonfinite", *more)
    assert job.save_path.read_bytes() == first.save_path.read_bytes()
    code, _, stderr = in_process(*job.flags(*SCS))
    assert (code, "has 20 scores that are NaN, infinite or missing" in stderr) == (2, True)


@pytest.mark.parametrize("kind", ["string", "bool", "list"])
def test_the_metadata_s_column_of_another_type(tmp_path: Path, kind: str) -> None:
    job = Job(POOL, tmp_path).write()
    metadata = {**POOL.metadata, "clip_l14_similarity_score": REFUSED[kind]}
    write_parquet(job.metadata / "part-00000.parquet", metadata)
    code, _, stderr = in_process(*job.flags(*SCS, table=False))
    assert code == 2
    assert f"has column 'clip_l14_similarity_score' of type {kind}" in stderr


# -------------------------------------------------------------------------- names in files


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("a.b", {"a": [{"b": 1.0}] * 60}),
        ("a", {"a.b": np.zeros(60)}),
        ("a.b", {"a": np.zeros(60), "a.b.c": np.zeros(60)}),
        ("s", {"S": np.zeros(60)}),
        ("uid.s", {"s": np.zeros(60)}),
        ("a", {"a ": np.zeros(60), "b": [{"a": 1.0}] * 60}),
    ],
)
def test_names_that_look_like_another_column_s(
    tmp_path: Path, name: str, others: dict[str, Any]
) -> None:
    first = job_with(tmp_path / "alone", VALUES, "s")
    flags = ("--num_samples", 200, "--repetition_penalty", 0.4)
    first.select("--name", "scs", "--column", "s", *flags)
    scores = {"uid": POOL.uids, **others, name: VALUES}
    job = Job(POOL._replace(scores=scores), tmp_path / "named").write()
    job.select("--name", "scs", "--column", name, *flags)
    assert job.save_path.read_bytes() == first.save_path.read_bytes()


def test_a_field_of_a_struct_is_no_column(tmp_path: Path) -> None:
    job = job_with(tmp_path, [{"b": 1.0}] * 60, "a")
    code, _, stderr = in_process(*job.flags("--name", "scs", "--column", "a.b", *SCS[4:]))
    assert (code, "no column 'a.b'" in stderr) == (2, True)


@pytest.mark.parametrize("second", [VALUES, ["text"] * 60])
def test_a_name_twice_in_a_file(tmp_path: Path, second: Any) -> None:
    job = job_with(tmp_path, VALUES)
    arrays = [pa.array(POOL.uids), pa.array(VALUES), pa.array(second)]
    table = pa.Table.from_arrays(arrays, ["uid", "vit-l-14", "vit-l-14"])
    pq.write_table(table, job.scores / "part-00000.parquet")
    code, _, stderr = in_process(*job.flags(*SCS))
    assert code == 2
    assert f"{job.scores / 'part-00000.parquet'} has column 'vit-l-14'" in stderr


def test_a_scorer_that_asks_for_a_missing_column(tmp_path: Path) -> None:
    job = job_with(tmp_path, VALUES)
    (shard,) = open_shards(str(job.scores), "--scores_dir", 1)
    assert "has no column 'nope'" in refusal(lambda: list(shard.rows(("uid", "nope"))))


@pytest.mark.skipif(OLD_PYARROW, reason="cannot write float16")
def test_half_floats_in_a_file(tmp_path: Path) -> None:
    half = VALUES.astype(np.float16)
    first = job_with(tmp_path / "single", half.astype(np.float32))
    job = job_with(tmp_path / "half", half)
    for one in (first, job):
        one.select(*SCS)
    assert job.save_path.read_bytes() == first.save_path.read_bytes()
