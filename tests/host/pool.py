"""A generated pool in DataComp's layout, and a score table with other files and row order."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARD_ROWS = (9_000, 7_000, 4_000)
SCORE_COLUMNS = (
    "vit-b-32",
    "vit-l-14",
    "DFN-Base",
    "DFN-FT",
    "CC2M-Classifier",
    "IN1K-Classifier",
    "FLYT",
    "normsim_inf",
    "negCLIPLoss",
    "hype_lorentzian_distance",
    "hype_image_specificity",
    "hype_text_specificity",
)


@dataclass(frozen=True)
class Pool:
    """The folders of a pool, and its uids."""

    metadata: Path
    scores: Path
    uids: frozenset[tuple[int, int]]


def write_pool(folder: Path) -> Pool:
    """Write three metadata shards, and twelve score columns for the same uids."""
    rng = np.random.default_rng(2025)
    uids = [hashlib.md5(b"pool %d" % row).hexdigest() for row in range(sum(SHARD_ROWS))]
    pool = Pool(
        folder / "metadata",
        folder / "scores",
        frozenset((int(uid[:16], 16), int(uid[16:], 16)) for uid in uids),
    )
    pool.metadata.mkdir(parents=True)
    pool.scores.mkdir()
    start = 0
    for shard, rows in enumerate(SHARD_ROWS):
        table = _metadata(uids[start : start + rows], rng)
        pq.write_table(table, pool.metadata / f"{shard:08d}.parquet")
        start += rows

    order = rng.permutation(len(uids))
    columns: dict[str, object] = {"uid": np.array(uids, object)[order]}
    for offset, name in enumerate(SCORE_COLUMNS):
        columns[name] = rng.normal(offset - 6, 0.1 + offset, len(uids)).astype(np.float32)
    table = pa.table(columns)
    pq.write_table(table.slice(0, 12_345), pool.scores / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(12_345), pool.scores / "train-00001-of-00002.parquet")
    return pool


def _metadata(uids: list[str], rng: np.random.Generator) -> pa.Table:
    """Return a metadata shard with the columns that DataComp publishes."""
    rows = len(uids)
    return pa.table(
        {
            "uid": uids,
            "url": [f"https://example.org/{uid}.jpg" for uid in uids],
            "text": [f"caption of {uid}" for uid in uids],
            "original_width": rng.integers(16, 900, rows),
            "original_height": rng.integers(16, 900, rows),
            "clip_b32_similarity_score": rng.normal(0.25, 0.05, rows).astype(np.float32),
            "clip_l14_similarity_score": rng.normal(0.2, 0.05, rows).astype(np.float32),
            "face_bboxes": [[[0.1, 0.1, 0.5, 0.5]]] * rows,
            "sha256": [hashlib.sha256(uid.encode()).hexdigest() for uid in uids],
        }
    )


def scores_with_nan(pool: Pool, folder: Path) -> Path:
    """Copy the pool's score table, set one score to NaN, and return the file with the NaN."""
    shutil.copytree(pool.scores, folder)
    spoilt = folder / "train-00001-of-00002.parquet"
    table = pq.read_table(spoilt)
    values = table["FLYT"].to_numpy().copy()
    values[17] = np.nan
    column = table.column_names.index("FLYT")
    pq.write_table(table.set_column(column, "FLYT", pa.array(values)), spoilt)
    return spoilt
