"""`datacomp-flyt embed`: rows, arrays and scores against open_clip used by hand; resuming."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from datacomp_flyt.cli import embed as command
from datacomp_flyt.clip import embed as embedding
from datacomp_flyt.clip.embedded_shard import EmbedTask, write_embedded
from datacomp_flyt.clip.encoder import ClipEncoder
from datacomp_flyt.pool.embeddings import iter_embeddings
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.tars.pairs import DUPLICATE
from datacomp_flyt.tars.samples import BAD_IMAGE, NO_CAPTION, NO_UID
from tests.conftest import refusal
from tests.flyt.runs import SMALL_MODEL
from tests.flyt.tars import uid_of, write_tar
from tests.scorers.base.image_tars import (
    FEATURE_BOUND,
    checkpoint,
    features_one_by_one,
    sample,
    small_model,
    small_weights,
)
from tests.scorers.base.inline import InlineEngine
from tests.tolerances import float_bound

SHARDS, ROWS = 3, 5

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By prefix: configuration and weights; the second sees larger images."""
    folder = tmp_path_factory.mktemp("models")
    vision = {**SMALL_MODEL["vision_cfg"], "image_size": 48}
    paths = {
        "b32": small_model(folder),
        "l14": small_model(folder, "flyt-test-wide", vision_cfg=vision, embed_dim=24),
    }
    return {
        prefix: (path, checkpoint(folder / f"{prefix}.pt", small_weights(path)))
        for prefix, path in paths.items()
    }


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(SHARDS):
        numbers = range(shard * ROWS, (shard + 1) * ROWS)
        write_tar(folder / f"{shard:08d}.tar", [sample(number) for number in numbers])
    return folder


def encoder_words(models: dict[str, tuple[Path, Path]]) -> list[str]:
    words = []
    for prefix, (model, weights) in models.items():
        words += ["--encoder", f"{prefix}={model}:{weights}"]
    return words


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser, [])
    return parser.parse_args([str(word) for word in words])


def run(*words: object) -> int:
    return command.run(parse(*words, "--device", "cpu", "--num_workers", 1, "--retries", 0))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "make_engine", lambda *_, **__: InlineEngine())


def files_in(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_like_one_by_one_in_float64(
    tmp_path: Path, tars: Path, models: dict[str, tuple[Path, Path]], dtype: str
) -> None:
    out = tmp_path / "out"
    words = ("--shards_dir", tars, "--metadata_dir", out, "--dtype", dtype, "--batch_size", 2)
    assert run(*words, *encoder_words(models)) == 0
    for shard in range(SHARDS):
        rows = [sample(number) for number in range(shard * ROWS, (shard + 1) * ROWS)]
        table = pq.read_table(out / f"{shard:08d}.parquet")
        with np.load(out / f"{shard:08d}.npz") as arrays:
            assert sorted(arrays) == ["b32_img", "b32_txt", "l14_img", "l14_txt"]
            for prefix, (model, _) in models.items():
                img, txt = features_one_by_one(model, small_weights(model), rows)
                for name, wanted in ((f"{prefix}_img", img), (f"{prefix}_txt", txt)):
                    stored = arrays[name]
                    assert stored.dtype == dtype
                    assert stored.shape == wanted.shape
                    stored_as = 0 if dtype == "float32" else float_bound(dtype, 1, 1)
                    assert np.abs(stored - wanted).max() < FEATURE_BOUND + stored_as
                column = table[f"clip_{prefix}_similarity_score"]
                assert column.type == pa.float32()
                assert np.abs(column.to_numpy() - np.sum(img * txt, 1)).max() < FEATURE_BOUND
        assert table["uid"].to_pylist() == [
            uid_of(number) for number in range(shard * ROWS, (shard + 1) * ROWS)
        ]
        assert table["text"].to_pylist() == [row["txt"].decode() for row in rows]


@pytest.mark.usefixtures("in_process")
def test_what_it_writes_is_a_pool(
    tmp_path: Path, tars: Path, models: dict[str, tuple[Path, Path]]
) -> None:
    out = tmp_path / "out"
    assert run("--shards_dir", tars, "--metadata_dir", out, *encoder_words(models)) == 0
    pool = read_pool(str(out), 1)
    assert len(pool) == SHARDS * ROWS
    shards = open_shards(str(out), "--metadata_dir", 1)
    blocks = [block for s in shards for block in iter_embeddings(s, ("b32_img", "l14_txt"))]
    found = np.concatenate(blocks)
    assert found.shape == (SHARDS * ROWS, 16 + 24)
    assert np.isfinite(found).all()


def embedded(
    tar: Path, models: dict[str, tuple[Path, Path]], **changes: Any
) -> embedding.EmbeddedShard:
    values = {"dtype": "float16", "precision": "fp32", "batch_size": 4, "threads": 1} | changes
    encoders = {p: ClipEncoder(str(m), str(w)) for p, (m, w) in models.items()}
    return EmbedTask(encoders, **values)("cpu")(("a", str(tar)))


def test_samples_that_are_left_out(tmp_path: Path, models: dict[str, tuple[Path, Path]]) -> None:
    rows = [sample(number) for number in range(9)]
    rows[0]["jpg"] = b"no image"
    del rows[3]["txt"]
    rows[5]["json"] = b"{}"
    rows[6]["json"] = rows[1]["json"]
    found = embedded(write_tar(tmp_path / "a.tar", rows), models)
    kept = [1, 2, 4, 7, 8]
    assert found.table["uid"].to_pylist() == [uid_of(number) for number in kept]
    assert found.counts == {BAD_IMAGE: 1, NO_CAPTION: 1, NO_UID: 1, DUPLICATE: 1}
    whole = embedded(write_tar(tmp_path / "b.tar", [sample(n) for n in range(9)]), models)
    for name, values in found.arrays.items():
        assert np.abs(values - whole.arrays[name][kept]).max() < 1e-3


def test_sizes_are_those_before_img2dataset_resized(
    tmp_path: Path, models: dict[str, tuple[Path, Path]]
) -> None:
    stored: list[dict[str, object]] = [
        {"original_width": 640, "original_height": 480},
        {},
        {"original_width": "640", "original_height": None},
        {"original_width": 640},
    ]
    rows = [
        sample(number, json=json.dumps({"uid": uid_of(number), **more}).encode())
        for number, more in enumerate(stored)
    ]
    table = embedded(write_tar(tmp_path / "a.tar", rows), models).table
    sides = [int(np.random.default_rng(number).integers(20, 60)) for number in range(4)]
    assert table["original_width"].to_pylist() == [640, *sides[1:]]
    assert table["original_height"].to_pylist() == [480, *sides[1:]]


def test_a_tar_without_a_member(tmp_path: Path, models: dict[str, tuple[Path, Path]]) -> None:
    write_embedded(tmp_path, "a", embedded(write_tar(tmp_path / "a.tar", []), models))
    (shard,) = open_shards(str(tmp_path), "--metadata_dir", 1)
    assert shard.num_rows == 0
    assert list(iter_embeddings(shard, ("b32_img",))) == []
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["l14_txt"].shape == (0, 24)
        assert arrays["l14_txt"].dtype == np.float16


def test_threads_and_precision(
    tmp_path: Path, tars: Path, models: dict[str, tuple[Path, Path]]
) -> None:
    tar = tars / "00000000.tar"
    one, other = embedded(tar, models), embedded(tar, models, threads=3)
    assert one.table.equals(other.table)
    rounded = embedded(tar, models, precision="bf16", dtype="float32")
    for name, values in one.arrays.items():
        assert values.tobytes() == other.arrays[name].tobytes()
        assert 1e-4 < np.abs(rounded.arrays[name] - values).max() < 0.05
        assert np.allclose(np.linalg.norm(rounded.arrays[name], axis=1), 1, atol=1e-6)


def test_on_processes_it_is_the_same_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tars: Path,
    models: dict[str, tuple[Path, Path]],
) -> None:
    """Spawned workers with one thread each, whatever this process has."""
    assert run("--shards_dir", tars, "--metadata_dir", tmp_path / "a", *encoder_words(models)) == 0
    monkeypatch.setattr(embedding, "make_engine", lambda *_, **__: InlineEngine())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        words = ("--shards_dir", tars, "--metadata_dir", tmp_path / "b")
        assert run(*words, *encoder_words(models)) == 0
    finally:
        torch.set_num_threads(threads)
    assert len(files_in(tmp_path / "a")) == 2 * SHARDS + 1
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


@pytest.mark.usefixtures("in_process")
def test_a_damaged_tar_fails_alone_and_is_done_when_mended(
    tmp_path: Path,
    tars: Path,
    models: dict[str, tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "tars"
    copy.mkdir()
    for path in tars.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    broken = copy / "00000001.tar"
    broken.write_bytes(b"not a tar" * 1000)
    out = tmp_path / "out"
    words = ("--shards_dir", copy, "--metadata_dir", out, *encoder_words(models))
    assert run(*words) == 1
    assert str(broken) in capsys.readouterr().err
    first = files_in(out)
    assert sorted(name for name in first if "00000001" in name) == []
    assert len(first) == 5
    broken.write_bytes((tars / broken.name).read_bytes())
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(*words) == 0
    after = files_in(out)
    assert len(after) == 7
    assert {name: after[name] for name in first} == first
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times


@pytest.mark.usefixtures("in_process")
def test_a_killed_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tars: Path,
    models: dict[str, tuple[Path, Path]],
) -> None:
    """Killed between the two files of a shard: no parquet without its npz, nothing left over."""
    words = ("--shards_dir", tars, *encoder_words(models), "--metadata_dir")
    assert run(*words, tmp_path / "whole") == 0
    out = tmp_path / "out"
    replace = os.replace

    def until_the_second_parquet(source: str, target: str | Path) -> None:
        if str(target).endswith("00000001.parquet"):
            assert (out / "00000001.npz").exists()
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", until_the_second_parquet)
    with pytest.raises(KeyboardInterrupt):
        run(*words, out)
    monkeypatch.setattr(os, "replace", replace)
    names = sorted(path.name for path in out.glob("[0-9]*"))
    assert names == ["00000000.npz", "00000000.parquet", "00000001.npz"]
    (out / ".00000002.npz.0123456789abcdef.datacomp_flyt.tmp").write_bytes(b"of a killed writer")
    (out / ".00000002.parquet.0123456789abcdef.datacomp_flyt.tmp").write_bytes(
        b"of a killed writer"
    )
    assert run(*words, out) == 0
    assert files_in(out) == files_in(tmp_path / "whole")


@pytest.mark.usefixtures("in_process")
def test_what_is_done_is_not_mixed_with_other_settings(
    tmp_path: Path, tars: Path, models: dict[str, tuple[Path, Path]]
) -> None:
    out = tmp_path / "out"
    words = ["--shards_dir", tars, "--metadata_dir", out, *encoder_words(models)]
    assert run(*words) == 0
    before = files_in(out)
    for more, named in (
        (["--dtype", "float32"], "dtype"),
        (["--precision", "bf16"], "precision"),
        (["--encoder", "x={}:{}".format(*models["b32"])], "encoders"),
    ):
        message = refusal(run, *words, *more)
        assert str(out) in message
        assert named in message
    assert run(*words, "--batch_size", 3) == 0
    assert files_in(out) == before


@pytest.mark.usefixtures("in_process")
def test_settings_of_a_run_that_embedded_nothing_are_replaced(
    tmp_path: Path,
    models: dict[str, tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tar = tmp_path / "tars" / "00000000.tar"
    tar.parent.mkdir()
    tar.write_bytes(b"not a tar" * 1000)
    words = ("--shards_dir", tar.parent, "--metadata_dir", tmp_path / "out", *encoder_words(models))
    assert run(*words) == 1
    assert "1 shard failed and none is finished" in capsys.readouterr().err
    write_tar(tar, [sample(0)])
    assert run(*words, "--dtype", "float32") == 0
    with np.load(tmp_path / "out" / "00000000.npz") as arrays:
        assert arrays["b32_img"].dtype == np.float32


@pytest.mark.usefixtures("in_process")
def test_it_does_not_write_into_the_metadata_of_others(
    tmp_path: Path, tars: Path, models: dict[str, tuple[Path, Path]]
) -> None:
    pq.write_table(pa.table({"uid": [uid_of(0)]}), tmp_path / "x.parquet")
    words = ("--shards_dir", tars, "--metadata_dir", tmp_path, *encoder_words(models))
    assert f"{tmp_path} holds .parquet files that this" in refusal(run, *words)
    assert list(files_in(tmp_path)) == ["x.parquet"]


def encoders(*given: str) -> Sequence[object]:
    words = [word for text in given for word in ("--encoder", text)]
    return ("--shards_dir", "here", "--metadata_dir", "there", *words)


@pytest.mark.parametrize("text", ["b32", "b32=ViT-B-32", "=ViT-B-32:openai", "b/32=ViT-B-32:a"])
def test_encoders_that_are_no_encoders(text: str) -> None:
    message = refusal(run, *encoders(text))
    assert f"--encoder {text}" in message
    assert "PREFIX=MODEL:CHECKPOINT" in message


def test_wrong_flags(tmp_path: Path, tars: Path, models: dict[str, tuple[Path, Path]]) -> None:
    assert "--encoder is missing" in refusal(run, *encoders())
    message = refusal(run, *encoders("a=x:y", "a=z:y"))
    assert "--encoder a=z:y" in message
    model, weights = models["b32"]
    out = tmp_path / "out"
    words = ("--shards_dir", tars, "--metadata_dir", out, "--encoder")
    message = refusal(run, *words, f"b32={model}:{models['l14'][1]}")
    assert "--encoder b32: " in message
    assert str(models["l14"][1]) in message
    message = refusal(run, *words, f"b32=ViT-B-33:{weights}")
    assert "--encoder b32: ViT-B-33" in message
    assert not out.exists()
    message = refusal(run, *words, f"b32={model}:{weights}", "--batch_size", 0)
    assert "--batch_size 0" in message
    for name in ("a", "b"):
        write_tar(tmp_path / name / "1.tar", [sample(0)])
    pattern = str(tmp_path / "{a,b}" / "1.tar")
    words = ("--shards_dir", pattern, "--metadata_dir", out)
    message = refusal(run, *words, "--encoder", f"b32={model}:{weights}")
    assert "two shards called '1'" in message
    cloud = ("--shards_dir", tars, "--metadata_dir", "s3://bucket/out")
    assert "s3://bucket/out" in refusal(run, *cloud, "--encoder", f"b32={model}:{weights}")


@pytest.mark.usefixtures("in_process")
def test_tars_of_another_dataset(tmp_path: Path, models: dict[str, tuple[Path, Path]]) -> None:
    """ImageNet's: no uid, no caption, a label."""
    folder = tmp_path / "tars"
    rows = [sample(number, json=None, txt=None, cls=b"3") for number in range(4)]
    rows[2] = sample(2, json=None)
    write_tar(folder / "train-7.tar", rows)
    words = ("--shards_dir", folder, "--metadata_dir", tmp_path / "out", *encoder_words(models))
    assert run(*words) == 2
    words = (*words[:3], tmp_path / "made", *words[4:])
    assert run(*words, "--make_uids") == 0
    table = pq.read_table(tmp_path / "made/train-7.parquet")
    assert len(set(table["uid"].to_pylist())) == 4
    assert [bool(text) for text in table["text"].to_pylist()] == [False, False, True, False]
    model, _ = models["b32"]
    whole = [row | {"txt": b""} if "txt" not in row else row for row in rows]
    images, _ = features_one_by_one(model, small_weights(model), whole)
    with np.load(tmp_path / "made/train-7.npz") as arrays:
        assert np.abs(arrays["b32_img"].astype(np.float64) - images).max() < 1e-3
    assert "make_uids" in refusal(run, *words)
