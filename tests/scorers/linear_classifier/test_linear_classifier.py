"""Linear classifiers applied: published layouts, our files, and embeddings that do not fit."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from safetensors.numpy import load_file, save_file

from datacomp_flyt.demo import POOL as DEMO
from datacomp_flyt.engines.messages import pack, unpack
from datacomp_flyt.pool.embeddings import BLOCK_ROWS, NOT_UNIT_NORM, UNUSABLE
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.scorers.linear_classifier.classifier_file import (
    LINEAR_CLASSIFIER_KEY,
    LinearModel,
    load_classifier,
    save_classifier,
)
from datacomp_flyt.scorers.linear_classifier.linear_classifier import LinearClassifier
from tests.conftest import make_pool, refusal, write_files
from tests.files import torch_zip
from tests.oracles.linear_classifier import logit, two_class_logit
from tests.scorers.base.made import made_embeddings, write_npz
from tests.tolerances import float_bound

POOL = make_pool(300)
ROWS = len(POOL.uids)
B32 = ("b32_img", "b32_txt")
WIDTHS = {"b32_img": 512, "b32_txt": 512}


def weights(outputs: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(0, 5, (outputs, width)).astype(np.float32),
        rng.normal(0, 2, outputs).astype(np.float32),
    )


def classifier_file(path: Path, **tensors: np.ndarray) -> str:
    """The published layout, written without torch."""
    program = {
        name: torch_zip.tensor(
            name,
            values.shape,
            [int(np.prod(values.shape[axis + 1 :])) for axis in range(values.ndim)],
            kind=torch_zip.KINDS[values.dtype.str],
        )
        for name, values in tensors.items()
    }
    return str(torch_zip.zip_file(path, torch_zip.state_dict(program), tensors))


def metadata(folder: Path, arrays: dict[str, np.ndarray], parts: int = 2) -> list[ParquetShard]:
    write_files(folder, POOL.metadata, parts)
    write_npz(folder, POOL.uids, arrays)
    return open_shards(str(folder), "--metadata_dir", 1)


def scored(scorer: LinearClassifier, shards: Sequence[ParquetShard]) -> tuple[np.ndarray, Counter]:
    """Scores in the order of POOL.uids, after the trip to a worker; and all counts."""
    worker = unpack(pack(scorer))
    worker.load("cpu")
    found: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for shard in shards:
        result = worker.score(shard, {})
        assert result.values.dtype == np.float32
        assert result.values.shape == (shard.num_rows, 1)
        pairs = zip(result.uids, result.values[:, 0].tolist(), strict=True)
        found |= {format_uid(uid): value for uid, value in pairs}
        counts += result.counts
    return np.array([found[uid] for uid in POOL.uids]), counts


def from_flags(*words: str, column: str | None = None) -> LinearClassifier:
    """The scorer that a command line makes."""
    parser = argparse.ArgumentParser()
    LinearClassifier.add_arguments(parser)
    return LinearClassifier(**vars(parser.parse_args(words)), column=column)


def logit_bound(weight: np.ndarray, bias: ArrayLike, rows: ArrayLike) -> float:
    """Error of a logit in float32: a product of as many terms as a row has, and the bias.

    8 roundings more are of the row, which may be normalised, and of the result.
    """
    magnitude = np.abs(rows).astype(float) @ np.abs(weight).T.astype(float) + np.abs(bias)
    return float_bound("float32", magnitude.max(), weight.shape[1] + 1 + 8)


# ------------------------------------------------------------------------- published files


@pytest.mark.parametrize("arrays", [("b32_img",), B32])
def test_one_output_is_the_logit(tmp_path: Path, arrays: tuple[str, ...]) -> None:
    weight, bias = weights(1, 512 * len(arrays))
    path = classifier_file(tmp_path / "c.pt", weight=weight, bias=bias)
    embeddings = made_embeddings(ROWS, WIDTHS)
    scorer = from_flags("--classifier", path)
    scores, counts = scored(scorer, metadata(tmp_path / "pool", embeddings))
    rows = np.concatenate([embeddings[name] for name in arrays], axis=1).astype(float).tolist()
    wanted = [logit(weight[0].tolist(), float(bias[0]), row) for row in rows]
    bound = logit_bound(weight, bias, rows)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=bound)
    assert np.std(wanted) > 1_000 * bound
    assert not +counts
    assert scorer.columns == ({1: "IN1K-Classifier", 2: "CC2M-Classifier"}[len(arrays)],)

    turned = from_flags("--classifier", path, "--positive_class", "0")
    assert np.array_equal(
        scored(turned, open_shards(str(tmp_path / "pool"), "", 1))[0],
        -scores,
    )
    assert turned.settings != scorer.settings


@pytest.mark.parametrize("positive", [0, 1])
def test_two_outputs_are_the_log_odds(tmp_path: Path, positive: int) -> None:
    weight, bias = weights(2, 512)
    path = classifier_file(tmp_path / "c.pt", weight=weight, bias=bias)
    embeddings = made_embeddings(ROWS, {"b32_img": 512})
    scorer = LinearClassifier(path, positive_class=positive)
    scores, _ = scored(scorer, metadata(tmp_path / "pool", embeddings))
    wanted = [
        two_class_logit(weight.tolist(), bias.tolist(), row, positive)
        for row in embeddings["b32_img"].astype(float).tolist()
    ]
    bound = 2 * logit_bound(weight, bias, embeddings["b32_img"])
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=bound)
    assert np.std(wanted) > 1_000 * bound


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("nested", [False, True])
def test_what_torch_saves_where_there_is_torch(tmp_path: Path, outputs: int, nested: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.Linear(512, outputs)
    state = layer.state_dict()
    torch.save({"epoch": 1, "state_dict": state} if nested else state, tmp_path / "c.pt")
    embeddings = made_embeddings(ROWS, {"b32_img": 512})
    scores, _ = scored(
        LinearClassifier(str(tmp_path / "c.pt")), metadata(tmp_path / "pool", embeddings)
    )
    with torch.no_grad():
        found = layer(torch.tensor(embeddings["b32_img"].astype(np.float32))).numpy()
    wanted = found[:, 0] if outputs == 1 else found[:, 1] - found[:, 0]
    rows = embeddings["b32_img"]
    bound = 2 * outputs * logit_bound(layer.weight.detach().numpy(), [1], rows)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=bound)
    assert np.ptp(wanted) > 1_000 * bound


def test_flags_over_what_the_file_says(tmp_path: Path) -> None:
    weight, bias = weights(1, 9)
    names = ("l14_txt", "l14_img")
    save_classifier(LinearModel(weight[0], bias[0], ("a", "b")), tmp_path / "c.safetensors")
    embeddings = made_embeddings(ROWS, {"l14_txt": 5, "l14_img": 4})
    flags = ("--classifier", str(tmp_path / "c.safetensors"), "--arrays", *names)
    assert "--column" in refusal(from_flags, *flags)
    scorer = from_flags(*flags, column="mine")
    assert scorer.columns == ("mine",)
    scores, _ = scored(scorer, metadata(tmp_path / "pool", embeddings))
    rows = np.concatenate([embeddings[name] for name in names], axis=1).astype(float).tolist()
    wanted = [logit(weight[0].tolist(), float(bias[0]), row) for row in rows]
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=logit_bound(weight, bias, rows))


def test_names_of_dataset2metadata(tmp_path: Path) -> None:
    weight, bias = weights(1, 8)
    path = classifier_file(tmp_path / "c.pt", weight=weight, bias=bias)
    names = ["oai-clip-vit-b32-image", "oai-clip-vit-b32-text"]
    assert LinearClassifier(path, arrays=names).columns == ("CC2M-Classifier",)
    assert LinearClassifier(path, arrays=names[:1]).columns == ("IN1K-Classifier",)
    assert "no published name" in refusal(LinearClassifier, path, arrays=names[1:])


# ---------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("renormalize", [False, True])
def test_rows_as_stored_or_of_length_one(tmp_path: Path, renormalize: bool) -> None:
    weight, bias = weights(1, 8)
    path = classifier_file(tmp_path / "c.pt", weight=weight, bias=bias)
    embeddings = made_embeddings(ROWS)
    embeddings["b32_txt"][5:8] *= np.float16(3)
    embeddings["b32_img"][11, 2] = np.nan
    embeddings["b32_txt"][12] = 0
    scorer = LinearClassifier(path, arrays=B32, renormalize=renormalize)
    scores, counts = scored(scorer, metadata(tmp_path / "pool", embeddings))
    assert counts == {UNUSABLE: 2, NOT_UNIT_NORM: 3}
    assert np.flatnonzero(np.isnan(scores)).tolist() == [11, 12]
    for row in (0, 5, 7, 299):
        parts = [embeddings[name][row].astype(float) for name in B32]
        if renormalize:
            parts = [part / np.sqrt(sum(part**2)) for part in parts]
        joined = np.concatenate(parts)
        wanted = logit(weight[0].tolist(), float(bias[0]), joined.tolist())
        assert scores[row] == pytest.approx(wanted, rel=0, abs=logit_bound(weight, bias, [joined]))


def test_a_score_is_up_to_its_row_alone(tmp_path: Path) -> None:
    """Not to the files, blocks and rows around it, to the last bit."""
    rows = BLOCK_ROWS + 77
    made = make_pool(rows)
    embeddings = made_embeddings(rows, {"b32_img": 512})
    weight, bias = weights(1, 512)
    path = classifier_file(tmp_path / "c.pt", weight=weight, bias=bias)
    found = []
    for parts, seed in ((1, None), (3, 4)):
        folder = tmp_path / str(parts)
        write_files(folder, made.metadata, parts, seed)
        write_npz(folder, made.uids, embeddings)
        scores = {}
        for shard in open_shards(str(folder), "", 1):
            result = LinearClassifier(path).score(shard, {})
            keys = map(format_uid, result.uids)
            scores |= dict(zip(keys, result.values[:, 0].tolist(), strict=True))
        found.append(scores)
    assert found[0] == found[1]
    assert len(set(found[0].values())) > rows / 2


def test_demo_pool_has_another_width(tmp_path: Path) -> None:
    """32 numbers in b32_img: real embeddings of the demo, and a published classifier of 512."""
    shard, *_ = open_shards(str(DEMO / "metadata"), "--metadata_dir", 1)
    weight, bias = weights(1, 512)
    path = classifier_file(tmp_path / "c.pt", weight=weight, bias=bias)
    message = refusal(LinearClassifier(path).score, shard, {})
    assert f"has 32 columns in b32_img and --classifier {path} takes 512" in message
    weight, bias = weights(1, 64)
    path = classifier_file(tmp_path / "d.pt", weight=weight, bias=bias)
    assert "takes 64 numbers" in refusal(LinearClassifier, path)
    scorer = LinearClassifier(path, arrays=B32)
    assert np.isfinite(scorer.score(shard, {}).values).all()
    message = refusal(
        LinearClassifier(path, arrays=("b32_img", "l14_img"), column="x").score, shard, {}
    )
    assert "has 32 + 64 columns in b32_img, l14_img" in message
    assert "no array 'h14_img'" in refusal(
        LinearClassifier(path, arrays=["h14_img"]).score, shard, {}
    )


# --------------------------------------------------------------------------------- files


@pytest.mark.parametrize("arrays", [("b32_img",), B32, ("x",)])
def test_round_trip(tmp_path: Path, arrays: tuple[str, ...]) -> None:
    weight, bias = weights(1, 7)
    save_classifier(LinearModel(weight[0], bias[0], arrays), tmp_path / "c.safetensors")
    found = load_classifier(tmp_path / "c.safetensors")
    assert found.arrays == arrays
    assert np.array_equal(found.weight, weight[0])
    assert found.bias == bias[0]
    save_classifier(found, tmp_path / "again.safetensors")
    content = (tmp_path / "c.safetensors").read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == content
    assert {
        name: list(value.shape) for name, value in load_file(tmp_path / "c.safetensors").items()
    } == {
        "weight": [1, 7],
        "bias": [1],
    }


W, B = weights(2, 512)
BAD_TENSORS: dict[str, dict[str, np.ndarray]] = {
    "no bias": {"weight": W},
    "no weight": {"bias": B},
    "a mixing model": {"layers.0.weight": W, "layers.0.bias": B},
    "one more": {"weight": W, "bias": B, "scale": B},
    "three outputs": {"weight": np.ones((3, 512), np.float32), "bias": np.ones(3, np.float32)},
    "flat": {"weight": W[0], "bias": B[:1]},
    "biases of another number": {"weight": W, "bias": B[:1]},
    "no column": {"weight": W[:, :0], "bias": B},
}


@pytest.mark.parametrize("tensors", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_tensors_that_are_no_classifier(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    path = classifier_file(tmp_path / "c.pt", **tensors)
    message = refusal(LinearClassifier, path)
    assert message.startswith(f"{path} holds ")
    assert f"{next(iter(tensors))} {list(next(iter(tensors.values())).shape)}" in message
    assert "wanted weight [1 or 2, width] and bias [1 or 2]" in message


def test_numbers_that_are_no_classifier(tmp_path: Path) -> None:
    integers = classifier_file(tmp_path / "i.pt", weight=W.astype("<i4"), bias=B)
    assert "weight of int32" in refusal(LinearClassifier, integers)
    for wrong in (np.nan, np.inf):
        for name in ("weight", "bias"):
            tensors = {"weight": W.copy(), "bias": B.copy()}
            tensors[name].flat[-1] = wrong
            path = classifier_file(tmp_path / "n.pt", **tensors)
            assert "not finite" in refusal(LinearClassifier, path)


def _plain(path: Path, **entries: Any) -> str:
    save_file(
        {"weight": W[:1], "bias": B[:1]}, path, {k: json.dumps(v) for k, v in entries.items()}
    )
    return str(path)


def test_other_files(tmp_path: Path) -> None:
    assert "is not a file" in refusal(LinearClassifier, str(tmp_path / "none.pt"))
    assert "is not a file" in refusal(LinearClassifier, str(tmp_path))
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"text{suffix}"
        path.write_bytes(b"not a classifier" * 20)
        assert refusal(LinearClassifier, str(path)).startswith(str(path))
    key = LINEAR_CLASSIFIER_KEY
    for entries in ({}, {"other": 1}, {key: 3}, {key: {}}, {key: {"arrays": []}}):
        path = tmp_path / "m.safetensors"
        message = refusal(LinearClassifier, _plain(path, **entries))
        assert message.startswith(f"{path} is not a linear classifier of datacomp_flyt")
    assert LinearClassifier(_plain(path, **{key: {"arrays": ["b32_img"]}})).arrays == ("b32_img",)


def test_settings_follow_what_decides_the_scores(tmp_path: Path) -> None:
    path = classifier_file(tmp_path / "a.pt", weight=W, bias=B)
    other = classifier_file(tmp_path / "b.pt", weight=W, bias=B + 1)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(path).read_bytes())
    base = LinearClassifier(path).settings
    assert json.loads(json.dumps(base)) == base
    assert LinearClassifier(str(copy)).settings == base
    for different in (
        LinearClassifier(other),
        LinearClassifier(path, positive_class=0),
        LinearClassifier(path, arrays=["l14_img"]),
        LinearClassifier(path, renormalize=True),
    ):
        assert different.settings != base
