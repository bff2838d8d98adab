"""uids of every Arrow type are read or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.pool.arrow_types import is_kind
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.uids import InvalidUid, decode_uids, format_uid, holds_uids
from datacomp_flyt.tars.uids import uids_of_tar
from tests.baselines_plugin.job import Job, in_process
from tests.conftest import hex_uids, make_pool, refusal, take, write_parquet
from tests.tars.made_downloads import write_tar

Uids = Sequence["str | None"]
Form = Callable[[Uids], pa.Array]
HAS_VIEWS = hasattr(pa, "string_view")
HAS_UUID = hasattr(pa, "uuid")
HAS_RUNS = hasattr(pc, "run_end_encode")


def raw(uids: Uids) -> list[bytes | None]:
    return [None if uid is None else bytes.fromhex(uid) for uid in uids]


def ascii_bytes(uids: Uids) -> list[bytes | None]:
    return [None if uid is None else uid.encode() for uid in uids]


def encoded(plain: Form, uids: Uids, index: pa.DataType) -> pa.Array:
    """A dictionary with unused values; a null is a null index."""
    other = next((uid for uid in uids if uid is not None), "0" * 32)
    values = plain([other, *(uid or other for uid in uids)])
    rows = [None if uid is None else row + 1 for row, uid in enumerate(uids)]
    return pa.DictionaryArray.from_arrays(pa.array(rows, index), values)


IN_FILES: dict[str, Form] = {
    "string": lambda uids: pa.array(uids, pa.string()),
    "large_string": lambda uids: pa.array(uids, pa.large_string()),
    "dictionary of int8": lambda uids: encoded(pa.array, uids, pa.int8()),
    "dictionary of int64": lambda uids: encoded(pa.array, uids, pa.int64()),
    "dictionary of large_string": lambda uids: encoded(
        lambda u: pa.array(u, pa.large_string()), uids, pa.int32()
    ),
    "16 bytes": lambda uids: pa.array(raw(uids), pa.binary()),
    "16 bytes, large_binary": lambda uids: pa.array(raw(uids), pa.large_binary()),
    "fixed_size_binary[16]": lambda uids: pa.array(raw(uids), pa.binary(16)),
    "characters as binary": lambda uids: pa.array(ascii_bytes(uids), pa.binary()),
    "fixed_size_binary[32]": lambda uids: pa.array(ascii_bytes(uids), pa.binary(32)),
    "dictionary of 16 bytes": lambda uids: encoded(
        lambda u: pa.array(raw(u), pa.binary()), uids, pa.int16()
    ),
    "dictionary of fixed_size_binary[16]": lambda uids: encoded(
        lambda u: pa.array(raw(u), pa.binary(16)), uids, pa.int32()
    ),
}
if HAS_VIEWS:
    IN_FILES["string_view"] = lambda uids: pa.array(uids, pa.string_view())
    IN_FILES["binary_view"] = lambda uids: pa.array(raw(uids), pa.binary_view())
if HAS_UUID:
    IN_FILES["uuid"] = lambda uids: pa.array(raw(uids), pa.uuid())
IN_MEMORY = dict(IN_FILES)
if HAS_RUNS:
    IN_MEMORY["run-end-encoded"] = lambda uids: pc.run_end_encode(pa.array(uids, pa.string()))
    IN_MEMORY["run-end-encoded bytes"] = lambda uids: pc.run_end_encode(
        pa.array(raw(uids), pa.binary(16))
    )
if HAS_VIEWS:
    IN_MEMORY["dictionary of string_view"] = lambda uids: encoded(
        lambda u: pa.array(u, pa.string_view()), uids, pa.int32()
    )


def in_memory(test: Any) -> Any:
    return pytest.mark.parametrize("form", IN_MEMORY.values(), ids=IN_MEMORY.keys())(test)


def in_files(test: Any) -> Any:
    return pytest.mark.parametrize("form", IN_FILES.values(), ids=IN_FILES.keys())(test)


@in_memory
@pytest.mark.parametrize(("start", "stop"), [(0, 50), (7, 50), (11, 12), (20, 20)])
def test_every_form_decodes_whole_sliced_and_in_chunks(form: Form, start: int, stop: int) -> None:
    uids = hex_uids(50)
    column = form(uids)
    assert holds_uids(column.type)
    part = column.slice(start, stop - start)
    assert [format_uid(uid) for uid in decode_uids(part)] == uids[start:stop]
    if stop > start:
        chunks = pa.chunked_array([part, column.slice(0, 0), column.slice(3, 5)], column.type)
        wanted = [*uids[start:stop], *uids[3:8]]
        assert [format_uid(uid) for uid in decode_uids(chunks)] == wanted


@in_memory
@pytest.mark.parametrize("row", [0, 1, 49])
def test_a_null_is_named_in_every_form(form: Form, row: int) -> None:
    uids: list[str | None] = [*hex_uids(50)]
    uids[row] = None
    with pytest.raises(InvalidUid) as caught:
        decode_uids(form([*hex_uids(2, "before"), *uids]).slice(2))
    assert (caught.value.row, caught.value.value) == (row, None)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(
    ("row", "wrong"),
    [(3, b""), (0, b"x" * 15), (4, b"x" * 17), (2, b"0" * 32), (1, b"g" * 32), (0, b"0" * 36)],
)
def test_bytes_of_another_length_are_named(kind: pa.DataType, row: int, wrong: bytes) -> None:
    values = raw(hex_uids(5))
    values[row] = wrong
    with pytest.raises(InvalidUid):
        decode_uids(pa.array(values, kind))


def test_raw_bytes_are_in_the_order_of_the_characters() -> None:
    found = decode_uids(pa.array([bytes(range(16))], pa.binary(16)))
    assert format_uid(found[0]) == bytes(range(16)).hex() == "000102030405060708090a0b0c0d0e0f"


# ------------------------------------------------------------------------------ in files


POOL = make_pool(60)
SCS = ("--name", "standardized_sum", "--score_columns", "DFN-FT", "vit-l-14", "--seed", 3,
       "--num_samples", 200, "--repetition_penalty", 0.4)  # fmt: skip


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    job = Job(POOL, tmp_path_factory.mktemp("strings")).write()
    job.select(*SCS)
    return job.save_path.read_bytes()


def with_uids(columns: dict[str, Any], form: Form) -> dict[str, Any]:
    return {**columns, "uid": form(columns["uid"])}


@in_files
def test_the_same_subset_whatever_the_type(tmp_path: Path, wanted: bytes, form: Form) -> None:
    job = Job(POOL, tmp_path).write()
    write_parquet(job.metadata / "part-00000.parquet", with_uids(POOL.metadata, form))
    halves = [take(POOL.scores, range(begin, begin + 30)) for begin in (0, 30)]
    write_parquet(job.scores / "part-00000.parquet", with_uids(halves[1], form))
    write_parquet(job.scores / "of_strings.parquet", halves[0])  # a table of two kinds
    job.select(*SCS)
    assert job.save_path.read_bytes() == wanted


def test_the_same_subset_with_a_work_dir(tmp_path: Path, wanted: bytes) -> None:
    """All types have the same reader, so two of them are enough."""
    job = Job(POOL, tmp_path).write()
    forms = IN_FILES["fixed_size_binary[16]"], IN_FILES["dictionary of int8"]
    write_parquet(job.metadata / "part-00000.parquet", with_uids(POOL.metadata, forms[0]))
    write_parquet(job.scores / "part-00000.parquet", with_uids(POOL.scores, forms[1]))
    job.select(*SCS, "--work_dir", tmp_path / "work")
    assert job.save_path.read_bytes() == wanted


@in_files
def test_the_parquet_beside_a_tar(tmp_path: Path, form: Form) -> None:
    uids = hex_uids(9)
    status = ["success", "failed_to_download", "success"] * 3
    uids_and_null = form([*uids, None])
    pq.write_table(
        pa.table({"uid": uids_and_null, "status": [*status, "success"]}), tmp_path / "0.parquet"
    )
    kept = [uid for uid, how in zip(uids, status, strict=True) if how == "success"]
    tar = write_tar(tmp_path / "0.tar", {str(row): uid for row, uid in enumerate(kept)})
    found = uids_of_tar(str(tar))
    assert (list(map(format_uid, found.uids)), found.opened, found.problem) == (kept, False, None)
    assert (found.failed, found.unusable) == (3, 1)


REFUSED = {
    "int64": pa.array([1, 2]),
    "double": pa.array([0.5, 1.0]),
    "bool": pa.array([True, False]),
    "decimal128(38, 0)": pa.array([Decimal(1), Decimal(2)], pa.decimal128(38, 0)),
    "timestamp[us]": pa.array([1, 2], pa.timestamp("us")),
    "fixed_size_binary[8]": pa.array([b"8" * 8] * 2, pa.binary(8)),
    "struct<": pa.array([{"high": 1, "low": 2}] * 2),
    "list<": pa.array([[1, 2]] * 2),
    "null": pa.nulls(2),
}


@pytest.mark.parametrize(("kind", "column"), REFUSED.items(), ids=REFUSED.keys())
def test_other_types_are_refused_by_name(tmp_path: Path, kind: str, column: pa.Array) -> None:
    assert not holds_uids(column.type)
    write_parquet(tmp_path / "a.parquet", {"uid": column})
    message = refusal(read_pool, str(tmp_path), 1, progress=False)
    assert f"{tmp_path / 'a.parquet'} row 0 has uid {column[0].as_py()!r} of type {kind}" in message
    assert "16 bytes" in message
    with pytest.raises(InvalidUid):
        decode_uids(column)


def test_a_file_without_rows_may_have_any_type(tmp_path: Path) -> None:
    """pandas writes an empty column of strings as null."""
    write_parquet(tmp_path / "a.parquet", {"uid": pa.nulls(0), "s": pa.nulls(0)})
    write_parquet(tmp_path / "b.parquet", {"uid": hex_uids(3), "s": [1.0, 2.0, 3.0]})
    assert len(read_pool(str(tmp_path), 1, progress=False)) == 3


WITH_HYPHENS = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    "wrong", [WITH_HYPHENS, f"{{{WITH_HYPHENS}}}", f"urn:uuid:{WITH_HYPHENS}", WITH_HYPHENS[:32],
              "0x" + "1" * 32, " " + "1" * 31]
)  # fmt: skip
def test_uuids_as_text_are_refused_with_the_form_that_is_read(tmp_path: Path, wrong: str) -> None:
    job = Job(POOL, tmp_path).write()
    uids = [*POOL.uids[:7], wrong, *POOL.uids[8:]]
    write_parquet(job.scores / "part-00000.parquet", {**POOL.scores, "uid": uids})
    code, _, stderr = in_process(*job.flags(*SCS))
    assert code == 2
    assert f"part-00000.parquet row 7 has uid {wrong!r}" in stderr
    assert "32 hexadecimal characters without hyphens" in stderr


def test_kinds_that_this_pyarrow_lacks_are_no_kind() -> None:
    assert not is_kind("of_a_later_version", pa.string())
    assert is_kind("string", pa.string())


def test_a_tar_is_read_where_its_parquet_holds_no_uids(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": pa.array([1, 2])}), tmp_path / "0.parquet")
    uid = hex_uids(1)[0]
    found = uids_of_tar(str(write_tar(tmp_path / "0.tar", {"0": uid})))
    assert (list(map(format_uid, found.uids)), found.opened, found.problem) == ([uid], True, None)


def test_long_columns_of_bytes() -> None:
    content = np.random.default_rng(0).bytes(16 * 40_000)
    buffer = pa.py_buffer(content)
    column = pa.Array.from_buffers(pa.binary(16), 40_000, [None, buffer])
    texts = pa.array([content[start : start + 16].hex() for start in range(0, len(content), 16)])
    assert np.array_equal(decode_uids(column), decode_uids(texts))
