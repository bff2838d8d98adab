"""NormSim, VAS and CLIP score: the spec's vectors, float64 oracles, the public code, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from datacomp_flyt.scorers.base.targets import load_targets
from datacomp_flyt.scorers.clip_score import ClipScore
from datacomp_flyt.scorers.norm_sim import NormSim, norms
from datacomp_flyt.scorers.vas import Vas
from tests.conftest import refusal
from tests.oracles import scores as oracle
from tests.scorers.base.inline import run, scores_of, write_pool
from tests.scorers.made_pairs import F, G, pairs, unit
from tests.scorers.public_ncl import public_norm_sim, public_vas, requires_checkout
from tests.tolerances import float_bound

P = np.array([[1, 0, 0], [1, 1, 1]], float)
VECTORS = {
    2.0: [1.01835015, 1.18321596, 0.80829038, 1.15470054],
    math.inf: [0.96225045, 0.89442719, 0.80829038, 1.0],
}


def norm_bound(width: int, number: int, p: float, length: float = 1, computed: int = 1) -> float:
    """Error of a p-norm of products with a number of targets, in float32.

    A product of rows, of lengths whose product is at most `length`, has `width` roundings, and as
    many again where p is 2 (one factor is a root of the targets' second moment); 2 are of the
    inputs. By the triangle inequality the error of the norm is at most the p-norm of these errors.
    The powers, their sum and the root add the relative errors of 8 roundings and of `number / p`.
    """
    products = float_bound("float32", length * number ** (1 / p), 2 * width + 2, computed)
    return products + float_bound("float32", length * number ** (1 / p), 8 + number / p, computed)


def targets_file(folder: Path, rows: np.ndarray, name: str = "targets.npy") -> str:
    folder.mkdir(exist_ok=True)
    np.save(folder / name, rows.astype(np.float32))
    return str(folder / name)


@pytest.mark.parametrize("p", VECTORS)
def test_vectors_of_the_spec(p: float, tmp_path: Path) -> None:
    scorer = NormSim([targets_file(tmp_path, unit(P))], p=p)
    scores = scores_of(scorer, {"b32_img": unit(F).astype("f4")}, tmp_path)
    assert np.abs(scores - VECTORS[p]).max() < norm_bound(3, 2, p) + 5e-9  # printed to 8 digits


def test_vectors_of_vas_and_clip_score(tmp_path: Path) -> None:
    arrays = {"b32_img": unit(F).astype("f4"), "b32_txt": unit(G).astype("f4")}
    vas = scores_of(Vas([targets_file(tmp_path, unit(P))]), arrays, tmp_path)
    # a mean of squared products, of 3 terms each, is at most 1; 8 roundings are of the inputs,
    # the squares and their mean
    bound = float_bound("float32", 1, 2 * 3 + 8) + 5e-9
    assert np.abs(vas - [0.51851852, 0.7, 0.32666667, 0.66666667]).max() < bound
    clip = scores_of(ClipScore(source="npz"), arrays, tmp_path)
    bound = float_bound("float32", 1, 3 + 2) + 5e-9
    assert np.abs(clip - [0.95257934, 0.8, 0.98058068, 0.33333333]).max() < bound


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 3.0, 100.0, math.inf])
def test_equals_the_oracle(p: float, tmp_path: Path) -> None:
    images, targets = pairs(60)["b32_img"], pairs(23, seed=1)["b32_txt"]
    scores = scores_of(
        NormSim([targets_file(tmp_path, targets)], p=p), {"b32_img": images}, tmp_path
    )
    expected = oracle.norm_sim(images, targets, p)
    assert np.abs(scores - expected).max() < norm_bound(16, 23, p)
    assert NormSim([targets_file(tmp_path, targets)], p=p).columns == (f"normsim_{p:g}",)


def test_the_largest_is_of_absolute_values(tmp_path: Path) -> None:
    images, targets = unit(F).astype("f4"), -unit(P)
    scores = scores_of(NormSim([targets_file(tmp_path, targets)]), {"b32_img": images}, tmp_path)
    assert np.abs(scores - VECTORS[math.inf]).max() < norm_bound(3, 2, math.inf) + 5e-9


@pytest.mark.parametrize("p", [3.0, math.inf])
def test_tiles_do_not_matter(p: float) -> None:
    rows, targets = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    whole = norms(rows, targets, p, (40, 40))
    length = float(rows.norm(dim=1).max() * targets.norm(dim=1).max())
    bound = norm_bound(8, 40, p, length, computed=2)
    assert torch.allclose(norms(rows, targets, p, (7, 9)), whole, rtol=0, atol=bound)


def test_vas_of_the_pool_itself(tmp_path: Path) -> None:
    images = pairs(50)["b32_img"]
    images[11] = 0
    scores = scores_of(Vas(), {"b32_img": images}, tmp_path, sizes=[20, 0, 30])
    usable = np.setdiff1d(np.arange(50), [11])
    assert np.isnan(scores[11])
    expected = oracle.vas(images[usable], images[usable])
    absolute = np.abs(images[usable])
    second_moment = absolute.T @ absolute / len(usable)
    magnitude = np.einsum("ij,jk,ik->i", absolute, second_moment, absolute)
    bound = float_bound("float32", magnitude.max(), 2 * 16 + len(usable) + 8)
    assert np.abs(scores[usable] - expected).max() < bound


def test_files_of_other_widths_are_refused(tmp_path: Path) -> None:
    write_pool(tmp_path / "metadata", pairs(8), [8])
    write_pool(tmp_path / "wide", pairs(8, width=24), [8])
    for kind in ("npz", "parquet"):
        (tmp_path / f"wide/shard_0.{kind}").rename(tmp_path / f"metadata/shard_1.{kind}")
    error = refusal(lambda: run(Vas(), tmp_path / "metadata", tmp_path / "scores"))
    assert "shard_1.npz has embeddings of width 24 and files before it of 16" in error
    scorer = NormSim([targets_file(tmp_path, unit(P))])
    report = run(scorer, tmp_path / "metadata", tmp_path / "scores")
    assert "b32_img of width 24 and --targets are of width 3" in str(report.failed["shard_1"])


# ------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("name", ["t.npy", "t.npz", "alone.pt", "dict.pt", "t.safetensors", "dir"])
def test_target_files(name: str, tmp_path: Path) -> None:
    rows, path = unit(P).astype("f4"), tmp_path / name
    if name == "t.npy":
        np.save(path, rows.astype(np.float16))
    elif name == "t.npz":
        np.savez(path, b32_img=rows, b32_txt=rows * 2)
    elif name == "alone.pt":
        torch.save(torch.from_numpy(rows), path)
    elif name == "dict.pt":
        torch.save({"image_features": torch.from_numpy(rows), "labels": torch.zeros(2)}, path)
    elif name == "dir":
        write_pool(path, {"b32_img": rows}, [1, 1])
    else:
        from safetensors.numpy import save_file

        save_file({"anything": rows}, path)
    found = load_targets([str(path)], "b32_img")
    assert found.dtype == np.float32
    bound = float_bound("float16", 1, 1) + float_bound("float32", 1, 4)  # stored, normalised
    assert np.abs(np.sort(found, axis=0) - np.sort(rows, axis=0)).max() < bound


def test_bad_targets(tmp_path: Path) -> None:
    good = targets_file(tmp_path, unit(P))
    cases = {
        "is not there": [str(tmp_path / "none.npy")],
        "has length 2": [targets_file(tmp_path, 2 * unit(P), "long.npy")],
        "row 1 is not finite": [targets_file(tmp_path, unit(P) * [[1], [0]], "zero.npy")],
        "has width 4": [good, targets_file(tmp_path, np.eye(4), "wide.npy")],
        "embeddings are floats": [targets_file(tmp_path, np.ones(3), "flat.npy")],
        "cannot be read": [str(tmp_path / "text.pt")],
        "has no array": [str(tmp_path / "two.npz")],
    }
    (tmp_path / "text.pt").write_text("hello")
    np.savez(tmp_path / "two.npz", l14_img=unit(P), l14_txt=unit(P))
    for message, paths in cases.items():
        error = refusal(load_targets, paths, "b32_img")
        assert message in error
        assert Path(paths[-1]).name in error
    long = load_targets(cases["has length 2"], "b32_img", renormalize=True)
    assert np.abs(long - unit(P)).max() < float_bound("float32", 1, 3 + 4)


@pytest.mark.slow
@requires_checkout
def test_the_public_code_beside_ours(tmp_path: Path) -> None:
    images, targets = pairs(300, width=64)["b32_img"], pairs(90, width=64, seed=1)["b32_txt"]
    path = targets_file(tmp_path, targets)
    for p in (2.0, math.inf):
        ours = scores_of(NormSim([path], p=p), {"b32_img": images}, tmp_path / f"{p}")
        bound = norm_bound(64, 90, p, computed=2)
        assert np.abs(ours - public_norm_sim(images, targets, p)).max() < bound
    ours = scores_of(Vas([path]), {"b32_img": images}, tmp_path / "vas")
    assert np.abs(ours / public_vas(images, targets) - 1).max() < 2e-6
