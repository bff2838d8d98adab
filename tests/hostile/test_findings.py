"""Regression tests for faults that the fuzzer found."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
from PIL import Image

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.training_log import TrainingLog
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.tars.pairs import read_pairs
from datacomp_flyt.tars.samples import NO_UID, Skip, decode, stored_uid
from tests.conftest import refusal
from tests.hostile import valid
from tests.hostile.readers import READERS


def made(name: str, folder: Path, content: bytes | None = None) -> Path:
    """Make a reader's folder, optionally with other content in its target; return the target."""
    reader = READERS[name]
    reader.make(folder)
    path = folder / reader.target
    if content is not None:
        path.write_bytes(content)
    return path


def rewrite(path: Path, **columns: object) -> None:
    """Replace columns of a parquet file."""
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array(values))
    pq.write_table(table, path)


# ------------------------------------------------------------------------------------- messages


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    said = str(InputError("a\nb\x1b[31m\u202e\ud800" + "\0" * 10_000_000 + "end"))
    assert said.startswith(r"a\nb\x1b[31m\u202e\ud800\x00")
    assert said.endswith("end")
    assert len(said) <= 2000
    assert str(InputError(said)) == said


# -------------------------------------------------------------------------------------- parquet

NO_TEXT = pa.array([b"\xff" * 32] + [b"f" * 32] * (valid.ROWS - 1)).view(pa.string())


@pytest.mark.parametrize(
    ("reader", "column"),
    [("pool", "uid"), ("captions", "text"), ("labels", "uid"), ("labels", "kind")],
)
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, reader: str, column: str) -> None:
    path = made(reader, tmp_path)
    rewrite(path, **{column: NO_TEXT})
    assert str(path) in refusal(READERS[reader].call, tmp_path)


@pytest.mark.parametrize(
    ("reader", "column"),
    [("pool", "uid"), ("scores", "uid"), ("scores", "flyt"), ("captions", "text"),
     ("labels", "uid"), ("labels", "kind")],
)  # fmt: skip
def test_a_column_twice(tmp_path: Path, reader: str, column: str) -> None:
    path = made(reader, tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.append_column(column, table[column]), path)
    assert str(path) in refusal(READERS[reader].call, tmp_path)


@pytest.mark.parametrize("rows", [valid.ROWS - 1, valid.ROWS + 1])
def test_another_number_of_rows_than_in_the_footer(tmp_path: Path, rows: int) -> None:
    path = made("pool", tmp_path)
    (_, shard) = open_shards(str(path.parent), "--metadata_dir", 1)
    shard = dataclasses.replace(shard, num_rows=rows)
    assert "another number of rows" in refusal(lambda: list(shard.batches("uid")))


def test_more_rows_than_bytes_are_read(tmp_path: Path) -> None:
    """Consecutive uids and constant scores compress to less than one byte a row."""
    rows, path = 300_000, made("scores", tmp_path)
    for name in ("a.npz", "a.parquet"):
        (tmp_path / "metadata" / name).unlink()
    (tmp_path / "scores" / "a.parquet").unlink()
    table = {"uid": [f"{row:032x}" for row in range(rows)], "flyt": np.zeros(rows, np.float32)}
    table["clip_b32_similarity_score"] = np.zeros(rows)
    for file in (path, tmp_path / "metadata" / path.name):
        pq.write_table(pa.table(table), file, compression="zstd")
        assert file.stat().st_size < rows
    number, *columns = READERS["scores"].call(tmp_path)
    assert number == rows
    assert all((values == 0).all() for values in columns)


def test_a_uid_twice_in_a_sample_is_reported_with_its_file(tmp_path: Path) -> None:
    path = made("captions", tmp_path)
    rewrite(path, uid=[valid.uids(tag="b")[0]] * 2 + valid.uids(tag="b")[2:])
    assert str(path) in refusal(READERS["captions"].call, tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {"kind": [None, *["clean"] * (valid.ROWS - 1)]},
        {"kind": list(range(valid.ROWS))},
        {"uid": [valid.uids()[0], *valid.uids()[:-1]]},
    ],
    ids=["null", "numbers", "uid twice"],
)
def test_invalid_labels_are_refused(tmp_path: Path, columns: dict[str, object]) -> None:
    path = made("labels", tmp_path)
    rewrite(path, **columns)
    assert str(path) in refusal(READERS["labels"].call, tmp_path)


def test_labels_without_rows(tmp_path: Path) -> None:
    path = made("labels", tmp_path)
    pq.write_table(pq.read_table(path)[:0], path)
    assert str(path) in refusal(READERS["labels"].call, tmp_path)


@pytest.mark.parametrize("uids", [[1.5] * 4, [b"\xff" * 32] * 4, [["a"]] * 4])
def test_a_table_of_a_tar_whose_uids_are_not_text(tmp_path: Path, uids: list[object]) -> None:
    made("table of a tar", tmp_path)
    pq.write_table(pa.table({"uid": uids}), tmp_path / "a.parquet")
    assert READERS["table of a tar"].call(tmp_path) == [valid.uids(4), False]


# ------------------------------------------------------------------------------------ npz, text


def test_a_zip_that_is_called_npy(tmp_path: Path) -> None:
    path = made("rows t.npy", tmp_path)
    with path.open("wb") as file:
        np.savez(file, b32_img=np.eye(3))
    assert str(path) in refusal(READERS["rows t.npy"].call, tmp_path)


def test_a_damaged_state_of_passes(tmp_path: Path) -> None:
    path = made("state of passes", tmp_path, b"PK\x03\x04")
    assert str(path) in refusal(READERS["state of passes"].call, tmp_path)


# ----------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("reader", ["settings", "finished", "page", "model config"])
@pytest.mark.parametrize("text", ["", "5", "[]", '"x"', "{"])
def test_json_of_other_kinds(tmp_path: Path, reader: str, text: str) -> None:
    made(reader, tmp_path, text.encode())
    assert str(tmp_path) in refusal(READERS[reader].call, tmp_path)


def test_damaged_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n\xff\n{"step": 2}\n{"ste')
    TrainingLog(tmp_path, 3, 2, 1, 1, (), {}).__exit__(None, None, None)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    "content",
    [b'{"uid": 5}', b'{"uid": "' + rb"\ud800" * 32 + b'"}', b"[]", b"5", b"\xff"],
    ids=["number", "surrogates", "list", "scalar", "not UTF-8"],
)
def test_a_sample_without_a_uid(content: bytes) -> None:
    with pytest.raises(Skip, match=NO_UID):
        stored_uid({"json": content})


# ------------------------------------------------------------------------ downloaded images


def png_of(width: int, height: int) -> bytes:
    """Make a black picture, whose rows compress to almost nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        size, checksum = len(content), zlib.crc32(name + content)
        return struct.pack(">I", size) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 1)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(1, 10_000_000), (10_000_000, 1), (1, 70_000), (9_500, 9_500)])
def test_pictures_that_resizing_would_enlarge_are_refused(size: tuple[int, int]) -> None:
    """A row of 10 million pixels would have 500 billion at a shorter side of 224 pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow only warns; pytest would raise
        with pytest.raises(Skip):
            decode(png_of(*size), lambda image: image)


def test_long_pictures_of_img2dataset_are_read() -> None:
    assert decode(png_of(512, 1), lambda image: image.size) == (512, 1)


def test_ghostscript_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "EPS")
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: started.append(1))
    with pytest.raises(Skip):
        decode(buffer.getvalue(), lambda image: image)
    assert not started


def test_captions_keep_control_characters(tmp_path: Path) -> None:
    text = "\0\x1b[2J<script>\u202e"
    members = valid.members()[:3]
    members[1] = ("00000.txt", text.encode())
    (tmp_path / "a.tar").write_bytes(valid.tar_of(members))
    ((pair,),) = read_pairs(str(tmp_path / "a.tar"), lambda i: i.size, 4, 1, Counter())
    assert pair.text == text


# ---------------------------------------------------------------------------- downloaded models


class Evil:
    """An object that runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


PICKLED = [name for name in READERS if READERS[name].target.endswith(".pt")]


@pytest.mark.parametrize("name", PICKLED)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path: Path, name: str, zipped: bool) -> None:
    mark, path = tmp_path / "was_run", made(name, tmp_path)
    torch.save({"settings": "{}", "w": Evil(mark)}, path, _use_new_zipfile_serialization=zipped)
    assert str(path if name != "checkpoint" else tmp_path) in refusal(READERS[name].call, tmp_path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # shows that unpickling the file runs the code
    assert mark.exists()


@pytest.mark.parametrize("name", [n for n in READERS if READERS[n].target.endswith(".safetensors")])
@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (10**8).to_bytes(8, "little") + b"{}",
        b"\x02" + bytes(7) + b"{}",
        *(
            len(header).to_bytes(8, "little") + header + bytes(8)
            for header in (
                b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}',
                b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,9000000000000]}}',
                b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
            )
        ),
    ],
    ids=["2**63", "100 MB", "empty", "elements", "too far", "backwards"],
)
def test_headers_of_safetensors(tmp_path: Path, name: str, content: bytes) -> None:
    path = made(name, tmp_path, content)
    assert str(path) in refusal(READERS[name].call, tmp_path)


ZIPPED = [name for name in READERS if READERS[name].target.endswith(".npz")]


SHAPES = [(10**12, 3), (12, 10**12), (2**62, 2**62)]


@pytest.mark.parametrize(
    ("name", "shape"),
    # the pool reads the number of rows only, which is right in that shape
    [pair for pair in product(ZIPPED, SHAPES) if pair != ("npz of the pool", SHAPES[1])],
)
def test_shapes_in_npz(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = made(name, tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(path, "w") as archive:
        for member in names:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            array = io.BytesIO()
            np.lib.format.write_array_header_1_0(array, header)
            archive.writestr(member, array.getvalue() + bytes(144))
    assert str(path) in refusal(READERS[name].call, tmp_path)
