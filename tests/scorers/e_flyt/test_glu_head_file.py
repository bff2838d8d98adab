"""Files of scoring heads: round trips, the published layout, and files at fault."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from datacomp_flyt.mixing import load_mixing_model, save_mixing_model
from datacomp_flyt.mixing.m_flyt import E_FLYT_KEY, PAPER_MODEL
from datacomp_flyt.scorers import GluHead, load_glu_head, save_glu_head
from tests.conftest import refusal
from tests.files.torch_zip import mflyt_file
from tests.scorers.base.made import flyt_file, made_head


def assert_same(found: GluHead, head: GluHead) -> None:
    assert len(found.layers) == len(head.layers)
    tensors = found.tensors()
    for name, wanted in head.tensors().items():
        assert tensors[name].dtype == np.float32
        assert np.array_equal(tensors[name], wanted), name


@pytest.mark.parametrize("arrays", [("b32_img", "b32_txt"), ("a", "b", "c"), ("x",), None])
@pytest.mark.parametrize("layers", [1, 3])
def test_round_trip(tmp_path: Path, arrays: tuple[str, ...] | None, layers: int) -> None:
    head = made_head(layers=layers, arrays=arrays)
    path = tmp_path / "head.safetensors"
    save_glu_head(head, path)
    found = load_glu_head(str(path))
    assert found.arrays == arrays
    assert_same(found, head)
    again = tmp_path / "again.safetensors"
    save_glu_head(found, again)
    assert again.read_bytes() == path.read_bytes()


def test_names_of_our_file(tmp_path: Path) -> None:
    save_glu_head(made_head(), tmp_path / "head.safetensors")
    shapes = {
        name: tensor.shape for name, tensor in load_file(tmp_path / "head.safetensors").items()
    }
    assert shapes == {
        "layers.0.w1.weight": (7, 8),
        "layers.0.w1.bias": (7,),
        "layers.0.w3.weight": (7, 8),
        "layers.0.w3.bias": (7,),
        "layers.0.w2.weight": (1, 7),
        "layers.0.w2.bias": (1,),
    }


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_published_layout(tmp_path: Path, dtype: str, nested: bool, layers: int) -> None:
    """CLIP's tensors in this file have no numbers: only the head is read."""
    tensors = {
        name: tensor.astype(np.float16).astype(dtype)
        for name, tensor in made_head(layers=layers).tensors().items()
    }
    found = load_glu_head(str(flyt_file(tmp_path / "flyt.pt", tensors, nested)))
    assert found.arrays is None
    assert_same(found, GluHead.from_tensors(tensors, None, "the same"))


@pytest.mark.parametrize("nested", [False, True])
def test_what_torch_saves_where_there_is_torch(tmp_path: Path, nested: bool) -> None:
    torch = pytest.importorskip("torch")
    head = made_head(layers=2)
    saved = OrderedDict(
        (f"glu_model.{name}", torch.from_numpy(tensor)) for name, tensor in head.tensors().items()
    )
    saved["clip_model.logit_scale"] = torch.tensor(4.6)
    saved["clip_model.visual.proj"] = torch.randn(768, 512).half()
    torch.save({"epoch": 3, "state_dict": saved} if nested else saved, tmp_path / "flyt.pt")
    assert_same(load_glu_head(str(tmp_path / "flyt.pt")), head)


# -------------------------------------------------------------------------- files at fault


def safetensors(path: Path, about: object, drop: str | None = None) -> str:
    tensors = dict(made_head().tensors())
    tensors.pop(drop or "", None)
    save_file(tensors, path, {E_FLYT_KEY: about} if isinstance(about, str) else None)
    return refusal(load_glu_head, str(path))


@pytest.mark.parametrize(
    "about", [None, "", "{}", "[]", '{"arrays": "b32_img"}', '{"arrays": []}', '{"arrays": [1]}']
)
def test_safetensors_that_do_not_say_what_they_are(tmp_path: Path, about: str | None) -> None:
    message = safetensors(tmp_path / "x.safetensors", about)
    assert f"{tmp_path / 'x.safetensors'} is not a scoring head of datacomp_flyt" in message


def test_safetensors_without_a_tensor(tmp_path: Path) -> None:
    about = json.dumps({"arrays": ["b32_img", "b32_txt"]})
    message = safetensors(tmp_path / "x.safetensors", about, "layers.0.w2.bias")
    assert "x.safetensors has no layers.0.w2.bias" in message


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated_files(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"head.{suffix}"
    if suffix == "pt":
        flyt_file(path, made_head().tensors())
    else:
        save_glu_head(made_head(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in refusal(load_glu_head, str(path))


def test_no_file(tmp_path: Path) -> None:
    assert "no.pt is not a file" in refusal(load_glu_head, str(tmp_path / "no.pt"))


def test_a_published_file_without_a_head(tmp_path: Path) -> None:
    path = flyt_file(tmp_path / "clip.pt", {})
    assert "clip.pt has no layers.0.w1.weight" in refusal(load_glu_head, str(path))


def test_mixing_models_and_scoring_heads_are_told_apart(tmp_path: Path) -> None:
    weight, bias = np.ones((1, 12), np.float32), np.zeros(1, np.float32)
    mixing = [mflyt_file(tmp_path / "mflyt.pt", weight, bias), tmp_path / "m.safetensors"]
    save_mixing_model(PAPER_MODEL, mixing[1])
    for path in mixing:
        assert str(path) in refusal(load_glu_head, str(path))
        assert "use it with --name m_flyt" in refusal(load_glu_head, str(path))
        assert load_mixing_model(str(path)).weights
    heads = [
        flyt_file(tmp_path / "flyt.pt", made_head().tensors()),
        tmp_path / "h.safetensors",
    ]
    save_glu_head(made_head(), heads[1])
    for path in heads:
        assert str(path) in refusal(load_mixing_model, str(path))
        assert "use it with --name e_flyt" in refusal(load_mixing_model, str(path))
        assert load_glu_head(str(path)).layers
