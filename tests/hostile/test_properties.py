"""For any input, readers give a right answer or refuse the input."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("webdataset")
from webdataset.tariterators import group_by_keys, tar_file_expander

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.npy_header import read_npy_header
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.tars.samples import Skip, read_tar, stored_facts, stored_uid
from tests.hostile import valid

quick = settings(deadline=None, max_examples=60)  # no deadline: the machine may be busy

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("uid"), inner),
    max_leaves=8,
)


@quick
@given(st.text(st.characters(), max_size=3000))
def test_a_message_is_one_line_of_plain_text(text: str) -> None:
    said = str(InputError(text))
    assert said.isprintable()
    assert len(said) <= 2000
    assert not (text.isprintable() and len(text) <= 2000) or said == text


@quick
@given(st.binary(max_size=200) | JSON.map(lambda tree: json.dumps(tree).encode()))
def test_json_of_a_sample(content: bytes) -> None:
    facts = stored_facts({"json": content})
    try:
        uid = stored_uid({"json": content})
    except Skip:
        assert not (isinstance(facts.get("uid"), str) and facts["uid"].isascii())
    else:
        assert uid == json.loads(content)["uid"]


@quick
@given(
    st.lists(st.integers(-2, 2**65), max_size=4).map(tuple),
    st.sampled_from(["<f4", ">f2", "<u8", "|b1"]),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_headers_of_npy(shape: tuple[int, ...], dtype: str, by_columns: bool, version: int) -> None:
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": by_columns, "shape": shape}
    write = {1: np.lib.format.write_array_header_1_0, 2: np.lib.format.write_array_header_2_0}
    write[version](file, header)
    file.seek(0)
    if min(shape, default=0) < 0:
        with pytest.raises(ValueError, match="shape"):
            read_npy_header(file)
    else:
        assert read_npy_header(file) == (shape, by_columns, np.dtype(dtype))
        assert not file.read()


@quick
@given(
    st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=40, unique=True),
    st.sampled_from(["none", "snappy", "zstd", "gzip"]),
    st.booleans(),
    st.integers(1, 41),
    st.booleans(),
    st.data(),
)
def test_tables_are_read_however_they_are_written(
    numbers: list[int], compression: str, dictionary: bool, group: int, large: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    """The columns are written in another order than requested, and some are constant."""
    floats = st.floats(width=32) | st.just(0.5)
    scores = data.draw(st.lists(floats, min_size=len(numbers), max_size=len(numbers)))
    text = pa.large_string() if large else pa.string()
    uids = [f"{number:032x}" for number in numbers]
    table = pa.table(
        {"s": pa.array(scores, pa.float32()), "x": [1] * len(uids), "uid": pa.array(uids, text)}
    )
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(
            table, Path(folder, "a.parquet"), group,
            compression=compression, use_dictionary=dictionary,
        )  # fmt: skip
        (shard,) = open_shards(folder, "--metadata_dir", 1)
        batches = [*shard.rows(("uid", "s"))]
    assert shard.num_rows == len(uids)
    assert [uid for batch in batches for uid in batch.column(0).to_pylist()] == uids
    read = np.concatenate([batch.column(1).to_numpy() for batch in batches])
    np.testing.assert_array_equal(read, np.array(scores, np.float32))


NAMES = st.from_regex(r"(\.\./|/|__a__/|a/)?[a-c_.]{1,5}\.(jpg|txt|json)", fullmatch=True)


@quick
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=20)), max_size=6, unique_by=lambda file: file[0]),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_samples_of_tars_equal_webdatasets(files: list[tuple[str, bytes]], tar_format: int) -> None:
    content = valid.tar_of(files, tar_format)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tar")
        path.write_bytes(content)
        ours = [*read_tar(str(path))]
        source = {"url": str(path), "stream": io.BytesIO(content)}
        assert ours == [*group_by_keys(tar_file_expander([source]))]
