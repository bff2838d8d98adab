"""Embeddings are read once, in the order of the metadata, with unit norm."""

from __future__ import annotations

import os
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from datacomp_flyt.pool.embeddings import embedding_widths, iter_embeddings
from datacomp_flyt.pool.parquet import ParquetShard, check_shards, open_shards
from tests.conftest import hex_uids, refusal, write_parquet
from tests.oracles.e_flyt import unit
from tests.tolerances import float_bound

ROWS = 23
NAMES = ("b32_img", "b32_txt")


def arrays(dtype: str = "<f2", widths: tuple[int, int] = (3, 5)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(ROWS, width)).astype(dtype)
        for name, width in zip(NAMES, widths, strict=True)
    }


def shard(
    folder: Path, stored: dict[str, np.ndarray] | None, compressed: bool = True
) -> ParquetShard:
    write_parquet(folder / "a.parquet", {"uid": hex_uids(ROWS)})
    if stored is not None:
        (np.savez_compressed if compressed else np.savez)(folder / "a.npz", **stored)
    return open_shards(str(folder), "--metadata_dir", 1)[0]


def everything(made: ParquetShard, names: tuple[str, ...] = NAMES, rows: int = 7) -> np.ndarray:
    return np.concatenate(list(iter_embeddings(made, names, rows)))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 23, 100])
def test_unit_rows_side_by_side(tmp_path: Path, dtype: str, compressed: bool, rows: int) -> None:
    stored = arrays(dtype)
    made = shard(tmp_path, stored, compressed)
    blocks = list(iter_embeddings(made, NAMES, rows))
    assert [len(block) for block in blocks] == [
        min(rows, ROWS - start) for start in range(0, ROWS, rows)
    ]
    assert all(block.dtype == np.float32 for block in blocks)
    wanted = [unit(image) + unit(text) for image, text in zip(*stored.values(), strict=True)]
    bound = float_bound("float32", 1, 5 + 3)  # the squares' sum, its root and the quotient
    np.testing.assert_allclose(np.concatenate(blocks), wanted, rtol=0, atol=bound)
    assert embedding_widths(made, NAMES) == (3, 5)


def test_arrays_in_the_order_of_their_names(tmp_path: Path) -> None:
    made = shard(tmp_path, {**arrays(), "dedup": np.zeros(ROWS, np.int64)})
    both = everything(made)
    assert np.array_equal(everything(made, NAMES[::-1]), np.roll(both, 5, axis=1))
    assert np.array_equal(everything(made, ("b32_txt",)), both[:, 3:])
    assert np.array_equal(everything(made, ("b32_img",) * 2), np.tile(both[:, :3], 2))


def test_rows_without_a_direction_are_nan_throughout(tmp_path: Path) -> None:
    stored = arrays("<f4")
    stored["b32_img"][2, 1] = np.nan
    stored["b32_txt"][9, 4] = np.inf
    stored["b32_txt"][11] = 0
    found = everything(shard(tmp_path, stored))
    assert np.flatnonzero(np.isnan(found).any(1)).tolist() == [2, 9, 11]
    assert np.isnan(found[[2, 9, 11]]).all()


def test_float64_beyond_float32_is_no_direction(tmp_path: Path) -> None:
    stored = arrays("<f8")
    stored["b32_img"][4, 0] = 1e300
    assert np.flatnonzero(np.isnan(everything(shard(tmp_path, stored))).any(1)).tolist() == [4]


def test_a_cloud_folder(memory_folder: str) -> None:
    with fsspec.open(f"{memory_folder}/a.npz", "wb") as file:
        np.savez_compressed(file, **arrays())
    write_parquet(f"{memory_folder}/a.parquet", {"uid": hex_uids(ROWS)})
    (made,) = open_shards(memory_folder, "--metadata_dir", 1)
    assert everything(made).shape == (ROWS, 8)


# -------------------------------------------------------------------------- files at fault


@pytest.mark.parametrize("rows", [7, ROWS])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, rows: int) -> None:
    """Readers of other columns do not check the npz."""
    made = shard(tmp_path, arrays())
    check_shards([made])
    path = Path(made.path).with_suffix(".npz")
    os.utime(path, (1, 1))
    assert f"{path} has changed since" in refusal(everything, made, NAMES, rows)
    check_shards([made])


STORED: dict[str, tuple[dict[str, np.ndarray] | None, str]] = {
    "no npz": (None, r"a\.npz is not there: .*--download_npz"),
    "no such array": ({"b32_img": arrays()["b32_img"]}, r"no array 'b32_txt' \(it has b32_img\)"),
    "one dimension": ({**arrays(), "b32_txt": np.zeros(ROWS)}, r"'b32_txt' of float64 \[23\]"),
    "no width": ({**arrays(), "b32_txt": np.zeros((ROWS, 0))}, r"of float64 \[23, 0\]"),
    "integers": ({**arrays(), "b32_txt": np.zeros((ROWS, 3), int)}, r"of int64 \[23, 3\]"),
    "column order": (
        {**arrays(), "b32_txt": np.zeros((3, ROWS)).T}, r"of float64 \[23, 3\] in column order"
    ),
    "too wide": ({**arrays(), "b32_txt": np.zeros((ROWS, 16_385))}, r"of width 16,385"),
    "other rows": ({**arrays(), "b32_txt": np.zeros((9, 3))}, r"a\.npz has 9 rows .* has 23:"),
}  # fmt: skip


@pytest.mark.parametrize(("stored", "said"), STORED.values(), ids=STORED.keys())
def test_arrays_at_fault(tmp_path: Path, stored: dict[str, np.ndarray] | None, said: str) -> None:
    made = shard(tmp_path, stored)
    assert re.search(said, refusal(embedding_widths, made, NAMES))
    assert re.search(said, refusal(everything, made))


def test_what_follows_an_array_is_not_unpacked(tmp_path: Path) -> None:
    """A member of a few hundred kilobytes may grow to gigabytes; only the rows are read."""
    made = shard(tmp_path, arrays())
    path = Path(made.npz)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(1 << 26))
    assert path.stat().st_size < 1 << 18
    made = open_shards(str(tmp_path), "--metadata_dir", 1)[0]
    tracemalloc.start()
    try:
        assert everything(made).shape == (ROWS, 8)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    stored = {**arrays(), "b32_txt": np.full((ROWS, 3), None)}
    assert "'b32_txt' of object" in refusal(everything, shard(tmp_path, stored))


def cut(content: bytes) -> bytes:
    return content[:-30]


def flipped(content: bytes) -> bytes:
    place = content.index(b"b32_txt.npy") + 250
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def short(content: bytes) -> bytes:
    """Write an array whose header claims more rows than it has."""
    return content.replace(b"'shape': (23, 5)", b"'shape': (23, 9)")


@pytest.mark.parametrize("spoil", [cut, flipped, short, lambda _: b"", lambda _: b"PK\x03\x04"])
def test_damaged_files(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    shard(tmp_path, arrays(), compressed=False)
    (tmp_path / "a.npz").write_bytes(spoil((tmp_path / "a.npz").read_bytes()))
    (made,) = open_shards(str(tmp_path), "--metadata_dir", 1)
    message = refusal(everything, made)
    assert message.startswith(f"{tmp_path / 'a.npz'} cannot be read as npz (")
