"""The sample of a pool: the same uids in any files, and no bias towards what SCS draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.report.sample import PoolSample, SampleRule, read_sample
from datacomp_flyt.samplers import soft_cap_counts
from tests.conftest import hex_uids, make_pool, refusal, sorted_uids, take, write_files
from tests.oracles.selection import parse_uid, uid_array
from tests.report.made import make_captioned_pool

POOL = make_captioned_pool(300)


def sample_of(folder: str, max_rows: int, also: np.ndarray | None = None) -> PoolSample:
    return read_sample(open_shards(folder, "--metadata_dir", 2), max_rows, 5, 2, also)


def names(sample: PoolSample) -> list[str]:
    uids: list[str] = encode_uids(sample.pool.uids).to_pylist()
    return uids


@pytest.mark.parametrize("max_rows", [40, 300, 10**12])
def test_files_and_their_order_do_not_matter(tmp_path: Path, max_rows: int) -> None:
    one = sample_of(write_files(tmp_path / "one", POOL.metadata, 1), max_rows)
    many = sample_of(write_files(tmp_path / "many", POOL.metadata, 7, seed=4), max_rows)
    assert names(one) == names(many)
    assert one.captions is not None
    assert many.captions is not None
    assert one.captions.tolist() == many.captions.tolist()
    caption_of = dict(zip(POOL.uids, POOL.metadata["text"], strict=True))
    assert one.captions.tolist() == [caption_of[uid] for uid in names(one)]
    assert len(one) == len(one.pool) == (300 if max_rows >= 300 else pytest.approx(40, abs=25))


def test_scores_are_those_of_the_sampled_uids(tmp_path: Path) -> None:
    metadata = write_files(tmp_path / "m", POOL.metadata, 3, seed=1)
    scores = write_files(tmp_path / "s", POOL.scores, 2, seed=2)
    sample = sample_of(metadata, 80)
    columns = Columns(sample.pool, metadata, scores, 2, True, True)
    for name, source in (("FLYT", POOL.scores["FLYT"]), ("vit-b-32", POOL.scores["vit-b-32"])):
        value_of = dict(zip(POOL.uids, source.tolist(), strict=True))
        assert columns.find([name]) == [name]
        (found,) = columns.read([name])
        assert found.tolist() == [value_of[uid] for uid in names(sample)]
    (clip,) = columns.read(columns.find(["clip_l14_similarity_score"]))
    value_of = dict(zip(POOL.uids, POOL.metadata["clip_l14_similarity_score"], strict=True))
    assert clip.tolist() == [float(value_of[uid]) for uid in names(sample)]


def test_examples_asked_for_come_besides_the_sample(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", POOL.metadata, 3)
    plain = sample_of(folder, 40)
    missing = [uid for uid in sorted(POOL.uids) if uid not in names(plain)]
    also = uid_array(sorted(parse_uid(uid) for uid in [*missing[:9], *hex_uids(3, "unknown")]))
    more = sample_of(folder, 40, also)
    assert names(more) == sorted([*names(plain), *missing[:9]])
    assert [uid for uid, own in zip(names(more), more.chosen, strict=True) if own] == names(plain)
    assert len(more) == len(plain)


def test_the_share_is_as_asked_and_the_seed_matters() -> None:
    uids = sorted_uids(hex_uids(20_000))
    first, second = (SampleRule(5_000, 20_000, seed).takes(uids) for seed in (0, 1))
    assert first.sum() == pytest.approx(5_000, abs=300)
    assert (first & second).sum() == pytest.approx(1_250, abs=200)


def test_the_sample_is_no_favour_to_soft_cap_sampling_of_the_same_seed() -> None:
    uids = sorted_uids(hex_uids(20_000))
    counts = soft_cap_counts(np.zeros(20_000), uids, 10_000, 0.15, 0)
    inside = SampleRule(5_000, 20_000, 0).takes(uids)
    assert counts[inside].mean() == pytest.approx(0.5, abs=0.05)


def test_pools_without_captions_have_none(tmp_path: Path) -> None:
    pool = make_pool(30)
    del pool.metadata["text"]
    assert sample_of(write_files(tmp_path / "m", pool.metadata, 2), 30).captions is None


def test_null_captions_are_empty(tmp_path: Path) -> None:
    columns = {"uid": POOL.uids[:3], "text": ["a", None, "c"]}
    sample = sample_of(write_files(tmp_path / "m", columns), 3)
    assert sample.captions is not None
    assert sorted(sample.captions.tolist()) == ["", "a", "c"]


def test_a_uid_twice_is_refused(tmp_path: Path) -> None:
    columns = take(POOL.metadata, [0, 1, 2, 1])
    folder = write_files(tmp_path / "m", columns, 2)
    assert f"uid {POOL.uids[1]} is in the pool twice" in refusal(sample_of, folder, 10)


def test_a_sample_of_no_example_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", {"uid": pa.array([], pa.string())})
    assert "holds no example" in refusal(sample_of, folder, 1)
