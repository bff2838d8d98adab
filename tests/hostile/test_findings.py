"""What mutants of valid files have found, one by one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tarfile
import time
import tracemalloc
import warnings
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
from PIL import Image

from datacomp_flyt.clip.models import read_state_dict
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.torch_file import read_torch_file
from datacomp_flyt.files.torch_pickle import TorchFileError
from datacomp_flyt.flyt.training_log import TrainingLog
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.steps import read_note
from datacomp_flyt.tars.pairs import read_pairs
from datacomp_flyt.tars.samples import NO_UID, Skip, decode, read_tar, stored_uid
from tests.conftest import refusal
from tests.files import torch_zip
from tests.hostile import tars, valid
from tests.hostile.oracle import digest
from tests.hostile.readers import READERS
from tests.hostile.structures import deep, png_of, with_bomb, with_header


def made(name: str, folder: Path, content: bytes | None = None) -> Path:
    """A reader's folder, its target with other content; the target."""
    reader = READERS[name]
    reader.make(folder)
    path = folder / reader.target
    if content is not None:
        path.write_bytes(content)
    return path


def rewritten(path: Path, **columns: object) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values))
    pq.write_table(table, path)


# ------------------------------------------------------------------------------------ sentences


def test_a_sentence_stays_one_line_whatever_it_quotes() -> None:
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
def test_text_that_is_no_utf8(tmp_path: Path, reader: str, column: str) -> None:
    path = made(reader, tmp_path)
    rewritten(path, **{column: NO_TEXT})
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
def test_another_number_of_rows_than_the_footer_says(tmp_path: Path, rows: int) -> None:
    path = made("pool", tmp_path)
    (_, shard) = open_shards(str(path.parent), "--metadata_dir", 1)
    shard = dataclasses.replace(shard, num_rows=rows)
    assert "another number of rows" in refusal(lambda: list(shard.batches("uid")))


def test_a_footer_of_a_trillion_rows(tmp_path: Path) -> None:
    """Arrays are made for as many as it says."""
    path = made("pool", tmp_path)
    content, said = path.read_bytes(), b"\x16\x18\x19"  # num_rows, i64: 12; then a list
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    assert footer.count(said) == 1
    lie = footer.replace(said, b"\x16\x80\xc0\xca\xf3\x84\xa3\x02\x19")
    size = len(lie).to_bytes(4, "little")
    path.write_bytes(content[: -8 - len(footer)] + lie + size + content[-4:])
    assert pq.ParquetFile(path).metadata.num_rows > 10**12
    assert f"{path} says that it has 5,000,000,000,000 " in refusal(READERS["pool"].call, tmp_path)


def test_more_rows_than_bytes_may_be_right(tmp_path: Path) -> None:
    """uids that count up and scores that are all the same: people try things out with such."""
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


def test_a_uid_twice_in_a_sample_is_told_with_its_file(tmp_path: Path) -> None:
    path = made("captions", tmp_path)
    rewritten(path, uid=[valid.uids(tag="b")[0]] * 2 + valid.uids(tag="b")[2:])
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
def test_labels_at_fault(tmp_path: Path, columns: dict[str, object]) -> None:
    path = made("labels", tmp_path)
    rewritten(path, **columns)
    assert str(path) in refusal(READERS["labels"].call, tmp_path)


def test_labels_without_rows(tmp_path: Path) -> None:
    path = made("labels", tmp_path)
    pq.write_table(pq.read_table(path)[:0], path)
    assert str(path) in refusal(READERS["labels"].call, tmp_path)


@pytest.mark.parametrize("uids", [[1.5] * 4, [b"\xff" * 32] * 4, [["a"]] * 4])
def test_a_table_of_a_tar_whose_uids_are_no_text(tmp_path: Path, uids: list[object]) -> None:
    made("table of a tar", tmp_path)
    pq.write_table(pa.table({"uid": uids}), tmp_path / "a.parquet")
    assert READERS["table of a tar"].call(tmp_path) == [valid.uids(4), False]


# ------------------------------------------------------------------------------------ npz, text


def test_embeddings_that_are_too_wide(tmp_path: Path) -> None:
    """2,048 rows of which would be 160 GB; NumPy's header says so in 100 bytes."""
    path = made("embeddings", tmp_path)
    header = {"descr": "<f4", "fortran_order": False, "shape": (valid.ROWS, 20_000_000)}
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("b32_img", "b32_txt"):
            archive.writestr(f"{name}.npy", member.getvalue())
    assert "20,000,000" in refusal(READERS["embeddings"].call, tmp_path)


@pytest.mark.parametrize("reader", ["embeddings", "npz of the pool", "rows t.npz"])
def test_an_endless_header_is_not_read(tmp_path: Path, reader: str) -> None:
    path = made(reader, tmp_path)
    content = b"\x93NUMPY\x02\0" + (300_000_000).to_bytes(4, "little") + bytes(300_000_000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("b32_img", "b32_txt"):
            archive.writestr(f"{name}.npy", content)
    assert "300,000,000" in refusal(READERS[reader].call, tmp_path)


def test_a_zip_that_is_called_npy(tmp_path: Path) -> None:
    path = made("rows t.npy", tmp_path)
    with path.open("wb") as file:
        np.savez(file, b32_img=np.eye(3))
    assert str(path) in refusal(READERS["rows t.npy"].call, tmp_path)


def test_a_damaged_state_of_passes(tmp_path: Path) -> None:
    path = made("state of passes", tmp_path, b"PK\x03\x04")
    assert str(path) in refusal(READERS["state of passes"].call, tmp_path)


def test_many_templates_take_no_time(tmp_path: Path) -> None:
    lines = b"".join(b"{c} %d\n" % row for row in range(100_000))
    made("templates", tmp_path, lines)
    began = time.process_time()
    READERS["templates"].call(tmp_path)
    assert time.process_time() - began < 5


# ----------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("reader", ["settings", "finished", "page", "model config"])
@pytest.mark.parametrize("text", [deep(), deep('{"a":'), "5", "[]", '"x"'])
def test_json_of_other_kinds(tmp_path: Path, reader: str, text: str) -> None:
    made(reader, tmp_path, text.encode())
    assert str(tmp_path) in refusal(READERS[reader].call, tmp_path)


@pytest.mark.parametrize("value", ["x", None, 10**400, [1], float("nan")])
@pytest.mark.parametrize("name", ["draws", "effective_words", "word_coverage"])
def test_diagnostics_that_are_no_numbers(tmp_path: Path, name: str, value: object) -> None:
    path = made("page", tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    if name == "word_coverage" and (value is None or value != value):
        READERS["page"].call(tmp_path)  # NaN is written as null
    else:
        assert str(path) in refusal(READERS["page"].call, tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "5", "{}", '{"key": "a"}', '{"key": "a", "seconds": "x"}', deep(),
             '{"key": "a", "seconds": NaN}', '{"key": "a", "seconds": [1]}'],
)  # fmt: skip
def test_notes_of_steps_that_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_note(tmp_path / "a.json") == {}


def test_lines_of_a_log_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[1]\n5\n{"step": "x"}\n\xff\n{"step": 2}\n' + b"[" * 99_999)
    TrainingLog(tmp_path, 3, 2, 1, 1, (), {}).__exit__(None, None, None)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    "content",
    [deep().encode(), b'{"uid": 5}', b'{"uid": "' + rb"\ud800" * 32 + b'"}', b"[]", b"5", b"\xff",
     b"[" + b"[]," * 7_000_000 + b"[]]"],
    ids=["deep", "number", "surrogates", "list", "scalar", "no text", "28 MB of lists"],
)  # fmt: skip
def test_a_sample_without_a_uid(content: bytes) -> None:
    with pytest.raises(Skip, match=NO_UID):
        stored_uid({"json": content})


# ----------------------------------------------------------------------------------------- tars


@pytest.mark.parametrize("size", [3 * 10**9, 10**13])
def test_a_member_of_terabytes_in_a_kilobyte(tmp_path: Path, size: int) -> None:
    """GNU's sparse files: tarfile would make the zeros that are not there."""
    made("tar", tmp_path)
    content = tars.sparse("99999.jpg", size) + (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content)
    assert "99999.jpg" in refusal(READERS["tar"].call, tmp_path)


def test_a_compressed_member_that_is_too_large(tmp_path: Path) -> None:
    info = tarfile.TarInfo("00000.jpg")
    info.size = 1 << 30
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as archive:
        archive.fileobj.write(info.tobuf())
    assert "1,073,741,824 bytes" in refusal(READERS["tar"].call, tmp_path)


def test_members_of_webdataset_itself_are_no_samples(tmp_path: Path) -> None:
    """As its own reader of tars has it."""
    members = [tars.info_of(name, b"x") for name in ("__a__/1.txt", "__b__", "__c__.txt", "1.txt")]
    (tmp_path / "a.tar").write_bytes(tars.tar_of(members))
    keys = [sample["__key__"] for sample in read_tar(str(tmp_path / "a.tar"))]
    assert keys == ["__c__", "1"]


# ------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [(1, 10_000_000), (10_000_000, 1), (1, 70_000), (9_500, 9_500)])
def test_pictures_that_would_grow(size: tuple[int, int]) -> None:
    """Resized so that the shorter side is 224 pixels, a row of 10 million has 500 billion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as for those who have no filter that makes it an error
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


# --------------------------------------------------------------------------------------- models

MANY = 200_000
TUPLES = b"K\x01\x85q\0" + b"".join(b"h\0h\0\x86q\0" for _ in range(60))
"""A tuple of two tuples of two tuples..."""

SLOW = {
    "marks": b"(" * MANY + b"t" * MANY,
    "dimensions": torch_zip.tensor("0", [2**62] * MANY, [0] * MANY),
    "keys": b"}" + TUPLES + b"K\x01s",
    "storage": torch_zip.tensor("0", (1,), (1,)).replace(torch_zip.text("0"), TUPLES),
    "text times a number": torch_zip.tensor("0", (2**40,), (1,)).replace(
        torch_zip.sequence((1,)), b"(" + torch_zip.text("x" * 99) + b"t"
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("value", SLOW.values(), ids=SLOW.keys())
def test_a_pickle_that_takes_for_ever(tmp_path: Path, value: bytes) -> None:
    program = torch_zip.state_dict({"layers.0.weight": value})
    path = torch_zip.zip_file(tmp_path / "m.pt", program, {"0": np.ones(12, np.float32)})
    began = time.process_time()
    with contextlib.suppress(TorchFileError):
        read_torch_file(path)
    assert time.process_time() - began < 5


def test_a_compressed_torch_file(tmp_path: Path) -> None:
    path = made("mixing zip", tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "compressed" in refusal(READERS["mixing zip"].call, tmp_path)


@pytest.mark.parametrize("reader", ["mixing", "glu", "classifier"])
def test_deep_json_in_safetensors(tmp_path: Path, reader: str) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path = made(f"{reader} safetensors", tmp_path)
    with safe_open(path, "numpy") as file:
        (key,) = file.metadata()
    save_file(load_file(path), path, {key: deep()})
    assert str(path) in refusal(READERS[f"{reader} safetensors"].call, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"columns": "ab"}, {"columns": ["a", "a"]}, {"columns": [1, 2]}, {"columns": {"a": 1, "b": 2}},
     {"standardize": "no"}],
)  # fmt: skip
def test_mixing_models_misread_before(tmp_path: Path, changes: dict[str, object]) -> None:
    from safetensors.numpy import load_file, save_file

    from datacomp_flyt.mixing.m_flyt import MIXING_MODEL_KEY

    path = made("mixing safetensors", tmp_path)
    about = json.dumps({"columns": ["a", "b"], "standardize": True, **changes})
    save_file(load_file(path), path, {MIXING_MODEL_KEY: about})
    assert str(path) in refusal(READERS["mixing safetensors"].call, tmp_path)


def test_complex_weights(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path = made("mixing safetensors", tmp_path)
    with safe_open(path, "numpy") as file:
        about = file.metadata()
    save_file({**load_file(path), "weights": np.array([1, 2j], np.complex64)}, path, about)
    assert "complex64" in refusal(READERS["mixing safetensors"].call, tmp_path)


def test_tensors_without_numbers_of_their_own(tmp_path: Path) -> None:
    """Views that repeat one number, tensors of coordinates, and such as have no numbers."""
    path = tmp_path / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of sparse tensors
        tensors = [
            torch.ones(1).expand(10**6, 10**6),
            torch.sparse_coo_tensor([[0]], [1.0], (10**12,)),
            torch.empty(10**12, device="meta"),
        ]
        for tensor in tensors:
            torch.save({"state_dict": {"img": tensor}}, path)
            assert "img" in refusal(read_state_dict, path, f"--reference {path}")


def test_captions_with_controls_are_read_as_they_are(tmp_path: Path) -> None:
    from collections import Counter

    text = "\0\x1b[2J<script>\u202e"
    members = [tars.info_of(name, content) for name, content in valid.members()[:3]]
    members[1] = tars.info_of("00000.txt", text.encode())
    (tmp_path / "a.tar").write_bytes(tars.tar_of(members))
    ((pair,),) = read_pairs(str(tmp_path / "a.tar"), lambda i: i.size, 4, 1, Counter())
    assert pair.text == text


# --------------------------------------------------------------- what issues and advisories warn of


class Evil:
    """Runs code where it is unpickled."""

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
    torch.load(path, weights_only=False)  # and would have been
    assert mark.exists()


@pytest.mark.parametrize("name", [n for n in READERS if READERS[n].kind == "safetensors"])
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
                b'{"__metadata__":{"a":5}}',
            )
        ),
    ],
    ids=["2**63", "100 MB", "empty", "elements", "too far", "backwards", "metadata"],
)
def test_headers_of_safetensors(tmp_path: Path, name: str, content: bytes) -> None:
    path = made(name, tmp_path, content)
    assert str(path) in refusal(READERS[name].call, tmp_path)


ZIPPED = [name for name in READERS if READERS[name].target.endswith(".npz")]


SHAPES = [(10**12, 3), (12, 10**12), (2**62, 2**62), (-1, 3), (10**400,)]


@pytest.mark.parametrize(
    ("name", "shape"),
    # of that one the rows are right, which is all that is asked there
    [pair for pair in product(ZIPPED, SHAPES) if pair != ("npz of the pool", SHAPES[1])],
)
def test_shapes_in_npz(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = made(name, tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(path, "w") as archive:
        for member in names:
            archive.writestr(member, with_header(bytes(144), "'<f4'", shape, 1))
    assert str(path) in refusal(READERS[name].call, tmp_path)


@pytest.mark.parametrize("name", ZIPPED)
def test_what_follows_an_array_in_npz_is_not_inflated(tmp_path: Path, name: str) -> None:
    """Half a gigabyte of zeros after the numbers: as good as what is before them, and cheap."""
    path = made(name, tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = [(member, archive.read(member)) for member in archive.namelist()]
    whole = digest(READERS[name].call(tmp_path))
    path.write_bytes(with_bomb(members, 0))
    tracemalloc.start()
    try:
        assert digest(READERS[name].call(tmp_path)) == whole
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


NAMES = ["/etc/x.jpg", "../../x.jpg", "a/../../x.jpg", "C:\\x.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_where_a_member_says(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    stem = name.removesuffix(".jpg")
    files = [(f"{stem}.{kind}", content) for kind, content in zip(
        ("jpg", "txt", "json"), (content for _, content in valid.members()), strict=False
    )]  # fmt: skip
    (inner / "a.tar").write_bytes(tars.tar_of([tars.info_of(*file) for file in files]))
    before = sorted(tmp_path.rglob("*"))
    found, _ = READERS["tar"].call(inner)
    assert [[uid, text] for uid, _, text in found] == [[valid.uids()[0], "a caption"]]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_links_and_devices_in_tars_are_not_followed(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link, _ = tars.info_of("00000.txt", kind=kind)
    link.linkname, link.devmajor, link.devminor = str(secret), 1, 5
    members = [tars.info_of(*file) for file in valid.members()[:3]]
    (tmp_path / "a.tar").write_bytes(tars.tar_of([members[0], (link, b""), members[2]]))
    (sample,) = read_tar(str(tmp_path / "a.tar"))
    assert "txt" not in sample
