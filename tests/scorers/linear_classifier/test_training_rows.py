"""Embeddings drawn at random: all that there are, equally often, through any buffer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest

from datacomp_flyt.pool.embeddings import BLOCK_ROWS, NOT_UNIT_NORM, UNUSABLE
from datacomp_flyt.scorers.linear_classifier.training_rows import (
    EmbeddingFile,
    RandomRows,
    find_embeddings,
)
from tests.conftest import make_pool, sorted_uids, write_files
from tests.scorers.base.made import made_embeddings, write_npz


def numbered(rows: int) -> np.ndarray:
    """Different unit rows [rows, 2]: points of a quarter circle, in order."""
    angles = np.linspace(0.1, 1.4, rows)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def opened(folder: Path, sizes: list[int], seed: int = 0) -> tuple[list[EmbeddingFile], np.ndarray]:
    """Files of these sizes, and all their rows."""
    values = numbered(sum(sizes)).astype(np.float16)
    ends = np.cumsum(sizes)
    for number, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        save = np.savez_compressed if number % 2 else np.savez
        save(folder / f"{number:03d}.npz", x=values[end - size : end])
    return find_embeddings([str(folder)], ["x"], "--negatives"), values


def drawn(rows: RandomRows, draws: int, number: int) -> list[list[bytes]]:
    return [[row.tobytes() for row in rows.draw(number)] for _ in range(draws)]


def random_rows(files: list[EmbeddingFile], buffer_rows: int, seed: int = 0) -> RandomRows:
    return RandomRows(files, np.random.default_rng(seed), buffer_rows, "--negatives")


@pytest.mark.parametrize("buffer_rows", [60, 61, 1000])
def test_what_fits_is_drawn_uniformly(tmp_path: Path, buffer_rows: int) -> None:
    files, values = opened(tmp_path, [10, 0, 30, 20])
    rows = random_rows(files, buffer_rows)
    assert (rows.whole, rows.held, rows.width) == (True, 60, 2)
    counts = Counter(key for keys in drawn(rows, 300, 40) for key in keys)
    wanted = Counter(value.tobytes() for value in values)
    assert set(counts) == set(wanted)
    # 12,000 draws: 200 of each row, with a standard deviation of 14
    for key, number in wanted.items():
        assert abs(counts[key] - 200 * number) < 75 * number


def test_a_buffer_hands_out_every_row_once_a_pass(tmp_path: Path) -> None:
    sizes = [700] * 12  # more files than are open at once
    files, values = opened(tmp_path, sizes)
    keys = {value.tobytes() for value in values}
    rows = random_rows(files, 500)
    assert (rows.whole, rows.held) == (False, 500)
    batches = drawn(rows, 79, 100)  # 7900 of 8400 rows: with the buffer's, the first pass
    left = [row.tobytes() for row in rows._buffer]
    got = Counter([key for batch in batches for key in batch] + left)
    assert got == Counter(value.tobytes() for value in values)
    assert set(got) == keys
    # and on, in another order
    more = drawn(rows, 84, 100)
    assert len({key for batch in more for key in batch}) > 0.9 * len(keys)
    assert more[:79] != batches


def test_a_buffer_mixes_files(tmp_path: Path) -> None:
    """A draw has rows of as many files as are open at once, and of all parts of each."""
    files, values = opened(tmp_path, [700] * 12)
    place = {value.tobytes(): row for row, value in enumerate(values)}
    (batch,) = drawn(random_rows(files, 4000), 1, 200)
    found = np.array([place[key] for key in batch])
    of_file = [found[found // 700 == file] for file in range(12)]
    drawn_from = [rows for rows in of_file if len(rows) > 10]
    assert len(drawn_from) >= 5
    assert min(map(np.ptp, drawn_from)) > 350


def test_files_come_in_random_order(tmp_path: Path) -> None:
    """A buffer of two files' rows begins with any two of twelve."""
    files, values = opened(tmp_path, [50] * 12)
    place = {value.tobytes(): row for row, value in enumerate(values)}
    first = []
    for seed in range(60):
        held = random_rows(files, 100, seed)._buffer
        first.append(frozenset(place[row.tobytes()] // 50 for row in held))
    assert {len(pair) for pair in first} == {2}
    assert len(set(first)) > 20
    assert frozenset.union(*first) == set(range(12))
    held = [random_rows(files, 100, seed)._buffer.tobytes() for seed in (3, 3, 4)]
    assert held[0] == held[1] != held[2]


def test_a_subset_of_files_longer_than_a_block(tmp_path: Path) -> None:
    made = make_pool(2 * BLOCK_ROWS + 50)
    values = numbered(len(made.uids)).astype(np.float16)
    write_files(tmp_path, made.metadata)
    write_npz(tmp_path, made.uids, {"x": values})
    chosen = [3, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 9, 2 * BLOCK_ROWS + 49]
    files = find_embeddings([str(tmp_path)], ["x"], "--positives")
    subset = sorted_uids([made.uids[row] for row in chosen])
    rows = RandomRows(files, np.random.default_rng(0), 99, "--positives", subset=subset)
    assert rows.whole
    assert np.array_equal(rows._buffer, values[chosen])


def test_long_files_come_in_turn(tmp_path: Path) -> None:
    size = 3 * BLOCK_ROWS
    files, _ = opened(tmp_path, [size] * 4)
    rows = random_rows(files, 4 * BLOCK_ROWS)
    values = {file.path: next(file.blocks(False, Counter())) for file in files}
    held = {row.tobytes() for row in rows._buffer}
    for block in values.values():  # the first block of each
        assert {row.tobytes() for row in block.astype(np.float16)} <= held


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_rows_without_a_direction_are_skipped(
    tmp_path: Path, suffix: str, renormalize: bool
) -> None:
    values = numbered(40).astype(np.float32)
    values[3], values[7, 1], values[8, 0] = 0, np.nan, np.inf
    if renormalize:
        values[20:22] *= 5
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", values)
    else:
        np.savez(tmp_path / "a.npz", x=values)
    files = find_embeddings([str(tmp_path / f"a{suffix}")], ["x"], "--positives")
    rows = RandomRows(files, np.random.default_rng(0), 100, "--positives", renormalize)
    assert rows.held == 37
    assert (
        +rows.counts == Counter({UNUSABLE: 3, NOT_UNIT_NORM: 2 if renormalize else 0}) + Counter()
    )
    wanted = np.delete(values, [3, 7, 8], axis=0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(rows._buffer.astype(float), wanted, atol=1e-3)


def test_arrays_side_by_side(tmp_path: Path) -> None:
    arrays = made_embeddings(30, {"b32_img": 3, "b32_txt": 4})
    np.savez(tmp_path / "a.npz", **arrays)
    files = find_embeddings([str(tmp_path)], ["b32_txt", "b32_img"], "--positives")
    rows = random_rows(files, 100)
    assert rows.width == 7
    assert np.array_equal(rows._buffer, np.hstack([arrays["b32_txt"], arrays["b32_img"]]))


def test_a_folder_in_a_cloud(memory_folder: str) -> None:
    values = numbered(9).astype(np.float16)
    with fsspec.open(f"{memory_folder}/a.npz", "wb") as file:
        np.savez(file, x=values)
    rows = random_rows(find_embeddings([memory_folder], ["x"], "--negatives"), 20)
    assert np.array_equal(rows._buffer, values)
