"""Score tables against a join by plain dicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from datacomp_flyt.pool.pool import Pool, read_pool
from datacomp_flyt.pool.score_table import ScoreTable
from datacomp_flyt.pool.uids import format_uid
from tests.conftest import hex_uids, make_pool, refusal, take, write_files, write_parquet
from tests.oracles.selection import parse_uid, uid_array

POOL = make_pool(60)
UIDS = POOL.uids
RNG = np.random.default_rng(5)
VALUES = RNG.normal(0, 3, 60)
OLD_PYARROW = int(pa.__version__.split(".")[0]) < 15  # cannot write float16


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("metadata")
    return read_pool(write_files(folder, POOL.metadata, 2), 1, progress=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def table_of(folder: Path | str) -> ScoreTable:
    return ScoreTable(open_shards(str(folder), "--scores_dir", 1, True), f"--scores_dir {folder}")


def read(
    folder: Path | str, pool: Pool, *columns: str, num_workers: int = 1, **options: bool
) -> list[np.ndarray]:
    return list(table_of(folder).read(columns, pool, num_workers, progress=False, **options))


def joined(pool: Pool, *files: dict[str, Any], column: str) -> list[float]:
    """Return the score of each uid over all files with the column, NaN for none (oracle)."""
    scores = {
        uid.lower(): float(value)
        for file in files
        if column in file
        for uid, value in zip(file["uid"], file[column], strict=True)
    }
    return [scores.get(format_uid(uid), math.nan) for uid in pool.uids]


def same(found: np.ndarray, wanted: Iterable[float]) -> bool:
    return np.array_equal(found.astype(np.float64), np.array(list(wanted)), equal_nan=True)


# ------------------------------------------------------------------------------- joining


@pytest.mark.parametrize(
    ("kind", "read_as"),
    [
        pytest.param(
            np.float16, np.float32, marks=pytest.mark.skipif(OLD_PYARROW, reason="no float16")
        ),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int8, np.float64),
        (np.int64, np.float64),
        (np.uint16, np.float64),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_dtype_joins_as_a_dict_does(
    folder: Path, pool: Pool, kind: type[np.generic], read_as: type[np.generic], num_workers: int
) -> None:
    file = {"uid": UIDS, "a": np.abs(VALUES * 10).astype(kind)}
    write_files(folder, file, 3, seed=1)
    (found,) = read(folder, pool, "a", num_workers=num_workers)
    assert found.dtype == read_as
    assert same(found, joined(pool, file, column="a"))
    assert len(set(found.tolist())) > 20, "the scores hardly differ, so nothing is tested"


def test_float64_keeps_its_digits_beside_a_float32_file(folder: Path, pool: Pool) -> None:
    files = [
        take({"uid": UIDS, "a": VALUES}, range(0, 30)),
        take({"uid": UIDS, "a": VALUES.astype(np.float32)}, range(30, 60)),
    ]
    for name, file in enumerate(files):
        write_parquet(folder / f"{name}.parquet", file)
    (found,) = read(folder, pool, "a")
    assert found.dtype == np.float64
    assert same(found, joined(pool, *files, column="a"))


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "a", "b", "a"), ("b",)])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_columns_spread_over_files_with_other_rows(
    folder: Path, pool: Pool, order: tuple[str, ...], num_workers: int
) -> None:
    every = {"uid": UIDS, "a": VALUES, "b": VALUES * 2, "c": VALUES * 3}
    rng = np.random.default_rng(3)
    rows = [rng.permutation(60) for _ in range(2)]

    def part(columns: str, rows: np.ndarray) -> dict[str, Any]:
        return take({name: every[name] for name in ("uid", *columns)}, rows.tolist())

    files = {
        "ab": part("ab", rows[0][:25]),
        "a": part("a", rows[0][25:]),
        "below/b": part("b", rows[0][25:]),
        "z/c": part("c", rows[1]),  # a file of its own
    }
    (folder / "below").mkdir()
    (folder / "z").mkdir()
    for name, file in files.items():
        write_parquet(folder / f"{name}.parquet", file, row_group_size=9)
    assert table_of(folder).columns == ["a", "b", "c"]
    found = read(folder, pool, *order, num_workers=num_workers)
    for column, values in zip(order, found, strict=True):
        assert same(values, joined(pool, *files.values(), column=column)), column
        assert not np.isnan(values).any()


def test_rows_of_other_examples_are_passed_over(folder: Path, pool: Pool) -> None:
    others = hex_uids(40, "others")
    others[0], others[1] = "0" * 32, "f" * 32
    others[2:5] = [uid[:16] + "0" * 16 for uid in UIDS[:3]]  # first halves of the pool's
    others[5:8] = [uid[:16] + "f" * 16 for uid in UIDS[:3]]
    others[8:11] = ["0" * 16 + uid[16:] for uid in UIDS[:3]]
    others[11] = others[10]  # twice, but not in the pool
    file = {"uid": [*others, *UIDS], "a": np.concatenate([np.full(40, np.nan), VALUES])}
    write_files(folder, file, 2, seed=2)
    (found,) = read(folder, pool, "a")
    assert same(found, joined(pool, {"uid": UIDS, "a": VALUES}, column="a"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_uids_that_share_their_first_half(data: st.DataObject) -> None:
    """Few distinct halves, so that most lookups meet equal first halves."""
    half = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1])
    pairs = st.tuples(half, half)
    inside = sorted(data.draw(st.sets(pairs, min_size=1)))
    asked = data.draw(st.permutations(sorted(data.draw(st.sets(pairs)) | set(inside))))
    shard = _in_memory([f"{high:016x}{low:016x}" for high, low in asked])
    table = ScoreTable([shard], "table")
    uids = uid_array(inside)
    pool = Pool(uids["f0"], uids["f1"], [], [])
    (found,) = table.read(["a"], pool, 1, progress=False)
    assert found.tolist() == [float(asked.index(pair)) for pair in inside]


class _Memory(ParquetShard):
    """A shard without a file."""

    def rows(self, columns: Sequence[str]) -> Any:
        batch = pa.RecordBatch.from_arrays([self.fs[name] for name in columns], list(columns))
        for start in range(0, self.num_rows, 3):
            yield batch.slice(start, 3)


def _in_memory(uids: list[str]) -> ParquetShard:
    columns = {"uid": pa.array(uids), "a": pa.array(np.arange(float(len(uids))))}
    return _Memory(columns, "memory", len(uids), {name: c.type for name, c in columns.items()})


def test_only_numbers_are_offered(folder: Path) -> None:
    columns = {
        "uid": UIDS,
        "text": UIDS,
        "small": pa.array([1] * 60, pa.int8()),
        "flag": [True] * 60,
        "boxes": [[1.0]] * 60,
        "score": VALUES,
    }
    write_parquet(folder / "a.parquet", columns)
    assert table_of(folder).columns == ["small", "score"]


# ------------------------------------------------------------------- scores that are wrong


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_nonfinite_scores_are_counted_and_placed(
    folder: Path, pool: Pool, wrong: float | None, kind: pa.DataType, num_workers: int
) -> None:
    values: list[float | None] = VALUES.tolist()
    for row in (31, 38, 55):
        values[row] = wrong
    for name, rows in {"a": range(0, 30), "b": range(30, 50), "c": range(50, 60)}.items():
        cut = [values[row] for row in rows]
        columns = {"uid": [UIDS[row] for row in rows], "DFN": pa.array(cut, kind)}
        write_parquet(folder / f"{name}.parquet", columns, row_group_size=4)
    message = refusal(read, folder, pool, "DFN", num_workers=num_workers)
    assert "column 'DFN' has 3 scores" in message
    assert f"{folder / 'b.parquet'} row 1:" in message

    (found,) = read(folder, pool, "DFN", num_workers=num_workers, drop_nonfinite=True)
    dropped = {parse_uid(UIDS[row]) for row in (31, 38, 55)}
    assert {uid.tolist() for uid in pool.uids[np.isnan(found)]} == dropped
    kept = {
        "uid": UIDS,
        "a": [math.nan if v is None or not math.isfinite(v) else v for v in values],
    }
    wanted = np.array(joined(pool, kept, column="a"))
    assert same(found, wanted.astype(found.dtype))


def test_nulls_among_integers_are_missing_scores(folder: Path, pool: Pool) -> None:
    write_parquet(folder / "a.parquet", {"uid": UIDS, "n": [None, *range(59)]})
    assert "has 1 scores that are NaN, infinite or missing" in refusal(read, folder, pool, "n")
    (found,) = read(folder, pool, "n", drop_nonfinite=True)
    assert np.isnan(found).sum() == 1
    assert set(found[~np.isnan(found)]) == set(range(59))


def test_nonfinite_scores_of_other_examples_do_not_count(folder: Path, pool: Pool) -> None:
    file = {"uid": [*hex_uids(5, "others"), *UIDS], "a": [math.nan] * 5 + VALUES.tolist()}
    write_parquet(folder / "a.parquet", file)
    assert not np.isnan(read(folder, pool, "a")[0]).any()


def test_the_first_bad_row_in_a_later_batch(folder: Path) -> None:
    number = (1 << 17) + 20
    uids = [f"{row:032x}" for row in range(number)]
    values = np.zeros(number)
    values[[number - 7, number - 2]] = np.nan
    write_parquet(folder / "a.parquet", {"uid": uids, "a": values})
    big = read_pool(str(folder), 1, progress=False)
    message = refusal(read, folder, big, "a")
    assert "has 2 scores" in message
    assert f"row {number - 7}:" in message


def test_part_of_the_pool_is_refused_unless_allowed(folder: Path, pool: Pool) -> None:
    file = {"uid": UIDS[:53], "a": VALUES[:53]}
    write_parquet(folder / "a.parquet", file)
    message = refusal(read, folder, pool, "a")
    assert f"--scores_dir {folder} has no 'a' for 7 of the pool's 60 examples" in message
    first = format_uid(uid_array(sorted(map(parse_uid, UIDS[53:])))[0])
    assert f"the first is {first}" in message
    assert "--allow_partial_scores" in message
    (found,) = read(folder, pool, "a", allow_partial=True)
    assert same(found, joined(pool, file, column="a"))


def test_a_table_of_another_pool_is_refused_even_if_partial_ones_are_not(
    folder: Path, pool: Pool
) -> None:
    write_parquet(folder / "a.parquet", {"uid": hex_uids(9, "others"), "a": VALUES[:9]})
    assert "60 of the pool's 60" in refusal(read, folder, pool, "a", allow_partial=True)


@pytest.mark.parametrize(
    ("second_file", "row", "places"),
    [
        ("a", 60, ("a.parquet row 4", "a.parquet row 60")),
        ("b", 0, ("a.parquet row 4", "b.parquet row 0")),
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_score_twice_is_refused_with_both_places(
    folder: Path, pool: Pool, second_file: str, row: int, places: tuple[str, str], allowed: bool
) -> None:
    again = {"uid": [UIDS[4].upper()], "a": VALUES[4:5]}
    files = {"a": {"uid": list(UIDS), "a": VALUES}}
    if second_file == "a":
        files["a"] = {"uid": [*UIDS, *again["uid"]], "a": np.append(VALUES, again["a"])}
    else:
        files["b"] = again
    for name, file in files.items():
        write_parquet(folder / f"{name}.parquet", file)
    message = refusal(read, folder, pool, "a", allow_partial=allowed, drop_nonfinite=allowed)
    assert f"{UIDS[4]} in {folder / places[0]} and {folder / places[1]}" in message
    assert "'a'" in message


def test_a_bad_uid_in_a_score_table(folder: Path, pool: Pool) -> None:
    write_parquet(folder / "a.parquet", {"uid": [*UIDS[:9], "bad"], "a": VALUES[:10]})
    assert f"{folder / 'a.parquet'} row 9 has uid 'bad'" in refusal(read, folder, pool, "a")
