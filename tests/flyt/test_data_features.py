"""Score columns and embeddings are joined on the uid."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from datacomp_flyt.flyt.uid_features import (
    UidFeatures,
    embedding_features,
    score_features,
)
from tests.conftest import (
    REPOSITORY,
    MadePool,
    make_pool,
    refusal,
    take,
    write_files,
    write_parquet,
)

DEMO = str(REPOSITORY / "datacomp_flyt" / "demo" / "pool" / "metadata")
POOL = make_pool(60)
COLUMNS = ("DFN-FT", "vit-b-32", "FLYT")


def scores(folder: Path, pool: MadePool = POOL, **changes: np.ndarray) -> str:
    return write_files(folder, pool.scores | changes, 3, seed=1)


def row_of(features: UidFeatures, uid: str) -> list[float]:
    row = features.find(uid)
    assert row >= 0
    actual: list[float] = features.values[row].tolist()
    return actual


# ------------------------------------------------------------------------------- scores


def test_score_columns_by_uid(tmp_path: Path) -> None:
    actual = score_features(scores(tmp_path), COLUMNS, 2, progress=False)
    wanted = np.stack([POOL.scores[column] for column in COLUMNS], 1)
    assert len(actual.features) == 60
    for uid, row in zip(POOL.uids, wanted.tolist(), strict=True):
        assert row_of(actual.features, uid) == row
    assert np.allclose(actual.mean, wanted.astype(np.float64).mean(0), rtol=1e-12)
    assert np.allclose(actual.std, wanted.astype(np.float64).std(0), rtol=1e-12)
    assert actual.features.values.dtype == np.float32


def test_columns_in_different_files_and_rows(tmp_path: Path) -> None:
    rows = np.arange(60)
    write_files(tmp_path / "a", take({"uid": POOL.uids, "one": rows * 1.5}, rows[:50]), 2, seed=2)
    write_files(tmp_path / "b", take({"uid": POOL.uids, "two": rows * 2.5}, rows[5:]), 3, seed=3)
    write_files(tmp_path / "c", {"uid": ["f" * 32], "three": [1.0]})
    arguments = (str(tmp_path), ("two", "one"), 1)
    message = refusal(score_features, *arguments, progress=False)
    assert "5 of the pool's 60 examples" in message
    assert "--allow_partial_scores" in message
    actual = score_features(*arguments, allow_partial=True, progress=False)
    assert len(actual.features) == 45
    assert actual.features.find(POOL.uids[4]) == actual.features.find("f" * 32) == -1
    for row in range(5, 50):
        assert row_of(actual.features, POOL.uids[row]) == [row * 2.5, row * 1.5]
    assert actual.mean.tolist() == [27 * 2.5, 27 * 1.5]


def test_metadata_columns_have_published_names(tmp_path: Path) -> None:
    metadata = write_files(tmp_path / "metadata", POOL.metadata, 2)
    without = {name: column for name, column in POOL.scores.items() if name != "vit-b-32"}
    tables = write_files(tmp_path / "scores", without, 3)
    actual = score_features(tables, COLUMNS, 1, metadata, progress=False)
    for row, uid in enumerate(POOL.uids):
        assert row_of(actual.features, uid)[1] == POOL.metadata["clip_b32_similarity_score"][row]
    only = score_features(None, ("vit-l-14", "vit-b-32"), 1, metadata, progress=False)
    assert only.features.values.shape == (60, 2)
    assert "give one" in refusal(score_features, None, COLUMNS, 1)


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    message = refusal(score_features, scores(tmp_path), ("FLYT", "nowhere"), 1, progress=False)
    assert message.startswith("no column 'nowhere'")
    assert "DFN-FT" in message
    assert message.endswith("or name fewer columns")


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = POOL.scores["FLYT"].copy()
    bad[7] = np.nan
    folder = scores(tmp_path, FLYT=bad)
    assert "--drop_nonfinite" in refusal(score_features, folder, COLUMNS, 1, progress=False)
    actual = score_features(folder, COLUMNS, 1, drop_nonfinite=True, progress=False)
    assert len(actual.features) == 59
    assert actual.features.find(POOL.uids[7]) == -1
    assert row_of(actual.features, POOL.uids[8])[2] == bad[8]


def test_a_constant_column_and_an_empty_table(tmp_path: Path) -> None:
    folder = scores(tmp_path / "a", FLYT=np.ones(60, np.float32))
    assert "column 'FLYT'" in refusal(score_features, folder, COLUMNS, 1, progress=False)
    empty = tmp_path / "b"
    empty.mkdir()
    no_uids = {"uid": pa.array([], pa.string()), "FLYT": pa.array([], pa.float32())}
    write_parquet(empty / "0.parquet", no_uids)
    assert "holds no example" in refusal(score_features, str(empty), ("FLYT",), 1, progress=False)


def test_a_uid_twice_in_a_column_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "a", POOL.scores)
    write_files(tmp_path / "b", take(POOL.scores, [3]))
    message = refusal(score_features, str(tmp_path), COLUMNS, 1, progress=False)
    assert POOL.uids[3] in message


# ------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("arrays", [("b32_img", "b32_txt"), ("l14_txt",)])
def test_embeddings_of_the_demo_pool(arrays: tuple[str, ...]) -> None:
    features = embedding_features(DEMO, arrays, 2, progress=False)
    assert len(features) == 420
    pairs = zip(features.high.tolist(), features.low.tolist(), strict=True)
    assert list(pairs) == sorted(zip(features.high.tolist(), features.low.tolist(), strict=True))
    for path in sorted(Path(DEMO).glob("*.parquet")):
        stored = np.load(path.with_suffix(".npz"))
        parts = [stored[name].astype(np.float64) for name in arrays]
        unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
        for uid, row in zip(pq.read_table(path)["uid"].to_pylist(), np.hstack(unit), strict=True):
            assert np.allclose(row_of(features, uid), row, atol=1e-6)


def test_unknown_arrays_and_missing_files(tmp_path: Path) -> None:
    message = refusal(embedding_features, DEMO, ("b32_img", "b16"), 1, progress=False)
    assert "no array 'b16' (it has " in message
    assert "l14_img" in message
    metadata = write_files(tmp_path, POOL.metadata)
    assert ".npz is not there" in refusal(embedding_features, metadata, progress=False)


def test_embeddings_of_zero_or_nan_are_refused(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path, dirs_exist_ok=True)
    path = sorted(tmp_path.glob("*.npz"))[1]
    arrays = dict(np.load(path))
    arrays["b32_txt"][5] = 0
    np.savez(path, **arrays)
    message = refusal(embedding_features, str(tmp_path), progress=False)
    assert f"{path} row 5 has an embedding that is not finite or all 0" in message
    features = embedding_features(str(tmp_path), drop_nonfinite=True, progress=False)
    assert len(features) == 419
    assert features.find(pq.read_table(path.with_suffix(".parquet"))["uid"][5].as_py()) == -1
    arrays = {name: array[:, :8] for name, array in arrays.items()}
    np.savez(path, **arrays)
    assert "[8, 8]" in refusal(embedding_features, str(tmp_path), progress=False)


def test_uids_that_share_their_first_half() -> None:
    uids = [f"{1:016x}{low:016x}" for low in (3, 5, 2**63)] + [f"{2**64 - 1:016x}{0:016x}"]
    high, low = (np.array([int(uid[part], 16) for uid in uids], np.uint64) for part in HALVES)
    features = UidFeatures(high, low, np.zeros((4, 1), np.float32))
    assert [features.find(uid) for uid in uids] == [0, 1, 2, 3]
    for other in (f"{1:016x}{4:016x}", f"{0:032x}", "f" * 32):
        assert features.find(other) == -1


HALVES = (slice(16), slice(16, 32))
