"""Scores of metadata that list failed downloads: as if those rows were not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from datacomp_flyt.flyt.uid_features import embedding_features, score_features
from datacomp_flyt.pool.embeddings import NOT_IN_POOL
from datacomp_flyt.scorers import save_glu_head
from datacomp_flyt.scorers.base.scorer import Scorer
from datacomp_flyt.scorers.clip_score import ClipScore
from datacomp_flyt.scorers.e_flyt.e_flyt import EFlyt
from datacomp_flyt.scorers.m_flyt import MFlyt
from datacomp_flyt.scorers.neg_clip_loss import NegClipLoss
from datacomp_flyt.scorers.norm_sim_d import NormSimD
from datacomp_flyt.scorers.vas import Vas
from tests.conftest import hex_uids, sorted_uids, take, write_parquet
from tests.scorers.base.inline import run
from tests.scorers.base.made import made_embeddings, made_head, write_npz
from tests.scorers.made_pairs import leaning

SIZES = (20, 10, 30)
THERE = np.arange(sum(SIZES)) % 4 != 1
ARRAYS = {"b32_img": leaning(60), "b32_txt": leaning(60, seed=1)}


def write_pools(folder: Path, arrays: dict[str, np.ndarray]) -> tuple[Path, Path, list[str]]:
    """A pool with failed rows, the same files without them, and the uids that are there."""
    uids = hex_uids(sum(SIZES))
    rng = np.random.default_rng(3)
    columns = {
        "uid": uids,
        "status": np.where(THERE, "success", "failed_to_download").tolist(),
        **{name: rng.normal(size=60) for name in ("vit-b-32", "vit-l-14")},
    }
    start = 0
    for number, size in enumerate(SIZES):
        rows = range(start, start + size)
        for name in ("whole", "less"):
            kept = [row for row in rows if name == "whole" or THERE[row]]
            table = take(columns, kept)
            if name == "less":
                del table["status"]
            (folder / name).mkdir(exist_ok=True, parents=True)
            write_parquet(folder / name / f"shard_{number}.parquet", table)
        start += size
    for name in ("whole", "less"):
        write_npz(folder / name, uids, arrays)
    return folder / "whole", folder / "less", [u for u, ok in zip(uids, THERE, strict=True) if ok]


def e_flyt(folder: Path) -> Scorer:
    save_glu_head(made_head(2 * ARRAYS["b32_img"].shape[1], 7), folder / "head.safetensors")
    return EFlyt(str(folder / "head.safetensors"))


def m_flyt(folder: Path) -> Scorer:
    return MFlyt(scoring_model="paper", metadata_dir=str(folder), allow_missing_scores=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: ClipScore(source="npz"),
        lambda _: NegClipLoss(batch_size=16, num_partitions=3),
        lambda _: Vas(),
        lambda _: NormSimD(fraction=0.3, num_rounds=12, candidates=9),
        e_flyt,
        m_flyt,
    ],
    ids=["clip_score", "neg_clip_loss", "vas", "norm_sim_d", "e_flyt", "m_flyt"],
)
def test_scores(tmp_path: Path, make: Callable[[Path], Scorer]) -> None:
    whole, less, at_hand = write_pools(tmp_path, ARRAYS)
    values = []
    for folder in (less, whole):
        scorer = make(folder)
        report = run(scorer, folder, tmp_path / f"scores_{folder.name}")
        assert not report.failed, report.failed
        assert report.num_examples == len(at_hand)
        tables = sorted((tmp_path / f"scores_{folder.name}").rglob("*.parquet"))
        table = pa.concat_tables([pq.read_table(path) for path in tables])
        assert table["uid"].to_pylist() == at_hand
        values.append(table[scorer.columns[0]].to_numpy())
        assert report.counts[NOT_IN_POOL] == 0 or folder == whole
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5, atol=1e-6)
    assert len(set(values[0].tolist())) > 9


def test_features_of_training(tmp_path: Path) -> None:
    whole, less, at_hand = write_pools(tmp_path, made_embeddings(60))
    for read in (
        lambda folder: embedding_features(str(folder)),
        lambda folder: score_features(None, ("vit-b-32", "vit-l-14"), 1, str(folder)).features,
    ):
        wanted, found = read(less), read(whole)
        assert found.values.tobytes() == wanted.values.tobytes()
        assert len(found) == len(at_hand)
        assert found.high.tolist() == sorted_uids(at_hand)["f0"].tolist()
