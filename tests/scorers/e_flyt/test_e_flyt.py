"""Scores of a pool from its embeddings, against the loop over examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.pool.embeddings import BLOCK_ROWS, iter_embeddings
from datacomp_flyt.pool.pool import Pool, read_pool
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.scorers import GluHead, e_flyt_scores
from tests.conftest import make_pool, refusal, write_files
from tests.oracles.e_flyt import e_flyt_score
from tests.scorers.base.made import B32, listed, made_embeddings, made_head, write_npz

POOL = make_pool(300)
ROWS = len(POOL.uids)
HEAD = made_head(8, 70)


def pool_of(
    folder: Path,
    arrays: dict[str, np.ndarray],
    parts: int = 3,
    seed: int | None = None,
    compressed: bool = True,
) -> Pool:
    write_files(folder, POOL.metadata, parts, seed)
    write_npz(folder, POOL.uids, arrays, compressed)
    return read_pool(str(folder), 1)


def by_uid(pool: Pool, scores: np.ndarray) -> list[float]:
    """In the order of POOL.uids."""
    found = {format_uid(uid): score for uid, score in zip(pool.uids, scores.tolist(), strict=True)}
    return [found[uid] for uid in POOL.uids]


@pytest.mark.parametrize("layers", [1, 2])
def test_scores_are_those_of_the_loop(tmp_path: Path, layers: int) -> None:
    head = made_head(8, 5, layers)
    arrays = made_embeddings(ROWS)
    pool = pool_of(tmp_path, arrays, seed=3)
    scores = e_flyt_scores(head, pool)
    assert scores.dtype == np.float32
    wanted = [
        e_flyt_score(listed(head), *pair)
        for pair in zip(*(arrays[name] for name in B32), strict=True)
    ]
    np.testing.assert_allclose(by_uid(pool, scores), wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_head_names_the_arrays_and_their_order(tmp_path: Path) -> None:
    arrays = made_embeddings(ROWS, {"l14_txt": 3, "l14_img": 5, "b32_img": 4, "b32_txt": 4})
    pool = pool_of(tmp_path, arrays)
    names = ("l14_img", "l14_txt")
    head = made_head(8, 5, arrays=names)
    wanted = [
        e_flyt_score(listed(head), *pair)
        for pair in zip(*(arrays[name] for name in names), strict=True)
    ]
    np.testing.assert_allclose(by_uid(pool, e_flyt_scores(head, pool)), wanted, atol=1e-4)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("seed", [None, 6])
def test_workers_change_nothing(tmp_path: Path, compressed: bool, seed: int | None) -> None:
    pool = pool_of(tmp_path, made_embeddings(ROWS), 7, seed, compressed)
    first = e_flyt_scores(HEAD, pool)
    assert np.unique(first).size > ROWS / 2
    for workers in (2, 3):
        assert e_flyt_scores(HEAD, pool, workers, progress=False).tobytes() == first.tobytes()


def test_files_and_rows_in_another_order(tmp_path: Path) -> None:
    """A score moves with its row; its last bits are up to the BLAS."""
    arrays = made_embeddings(ROWS)
    first = e_flyt_scores(HEAD, pool_of(tmp_path / "0", arrays, 1))
    for number, (parts, seed) in enumerate([(1, 5), (4, None), (7, 6)], 1):
        scores = e_flyt_scores(HEAD, pool_of(tmp_path / str(number), arrays, parts, seed))
        np.testing.assert_allclose(scores, first, atol=1e-5 * float(first.std()))


def test_rows_without_a_direction(tmp_path: Path) -> None:
    arrays = made_embeddings(ROWS)
    arrays["b32_img"][7, 2] = np.nan
    arrays["b32_txt"][250] = 0
    pool = pool_of(tmp_path, arrays, parts=2)
    message = refusal(e_flyt_scores, HEAD, pool, 2)
    assert "embeddings of 2 examples" in message
    assert f"{tmp_path}/part-00000.npz row 7" in message
    assert "--drop_nonfinite" in message
    scores = by_uid(pool, e_flyt_scores(HEAD, pool, drop_nonfinite=True))
    assert np.flatnonzero(np.isnan(scores)).tolist() == [7, 250]
    whole = pool_of(tmp_path / "whole", made_embeddings(ROWS))
    kept = np.delete(np.arange(ROWS), [7, 250])
    # a row's place among others may decide its last bits: that is up to the BLAS
    np.testing.assert_allclose(
        np.array(scores)[kept],
        np.array(by_uid(whole, e_flyt_scores(HEAD, whole)))[kept],
        rtol=1e-4,
        atol=1e-5,
    )


def test_files_longer_than_a_block(tmp_path: Path) -> None:
    rows = 2 * BLOCK_ROWS + 77
    made = make_pool(rows)
    arrays = made_embeddings(rows)
    write_files(tmp_path, made.metadata)
    write_npz(tmp_path, made.uids, arrays)
    pool = read_pool(str(tmp_path), 1)
    scores = e_flyt_scores(HEAD, pool)
    (block,) = iter_embeddings(pool.shards[0], B32, rows)
    expected = HEAD.scores(block)  # its products on all cores: rounded otherwise by some BLAS
    np.testing.assert_allclose(scores[pool.positions[0]], expected, rtol=1e-4, atol=1e-5)

    late = BLOCK_ROWS + 5
    arrays["b32_txt"][[late, late + BLOCK_ROWS]] = np.nan
    write_npz(tmp_path, made.uids, arrays)
    assert "part-00000.npz has changed since" in refusal(e_flyt_scores, HEAD, pool)
    pool = read_pool(str(tmp_path), 1)
    message = refusal(e_flyt_scores, HEAD, pool)
    assert (
        f"embeddings of 2 examples are not finite or all zero, the first in {tmp_path}" in message
    )
    assert f"part-00000.npz row {late}:" in message
    dropped = e_flyt_scores(HEAD, pool, drop_nonfinite=True)[pool.positions[0]]
    assert np.flatnonzero(np.isnan(dropped)).tolist() == [late, late + BLOCK_ROWS]


def test_weights_that_overflow_are_not_the_pools_fault(tmp_path: Path) -> None:
    tensors = {name: tensor * np.float32(1e30) for name, tensor in HEAD.tensors().items()}
    head = GluHead.from_tensors(tensors, B32, "a test")
    pool = pool_of(tmp_path, made_embeddings(ROWS))
    for drop in (False, True):
        message = refusal(e_flyt_scores, head, pool, 1, drop, source="big.safetensors")
        assert message.startswith(f"big.safetensors gives {tmp_path}/part-00000.npz row 0")


def test_features_that_are_not_the_pools(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, made_embeddings(ROWS))
    assert "QuickGELU" in refusal(e_flyt_scores, made_head(arrays=None), pool)


@pytest.mark.parametrize("workers", [1, 2])
def test_another_width(tmp_path: Path, workers: int) -> None:
    pool = pool_of(tmp_path, made_embeddings(ROWS, {"b32_img": 4, "b32_txt": 3}))
    message = refusal(e_flyt_scores, HEAD, pool, workers, source="h.safetensors")
    assert message.startswith(f"{tmp_path}/part-00000.npz has 4 + 3 columns in b32_img, b32_txt")
    assert "h.safetensors takes 8" in message
