"""Checkpoints of other trainers, for each kind of model: loaded or refused."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from safetensors.torch import save_file
from torch import Tensor

from datacomp_flyt.cli import main
from datacomp_flyt.clip.models import load_clip_model, temperature_of
from datacomp_flyt.flyt.checkpoint import load_checkpoint, save_checkpoint
from datacomp_flyt.mixing import load_mixing_model
from datacomp_flyt.scorers.base.targets import load_targets
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head
from datacomp_flyt.scorers.e_flyt.images import EFlytImages
from datacomp_flyt.scorers.hype.model import load_hype_model
from datacomp_flyt.scorers.linear_classifier.classifier_file import load_classifier
from tests.conftest import refusal
from tests.flyt.runs import SMALL_MODEL
from tests.scorers.base.made import made_head
from tests.scorers.hype.made_hype import made_state

State = dict[str, Tensor]
WIDTH = 32  # width of both features of SMALL_MODEL


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "flyt-test-people.json"
    path.write_text(json.dumps(SMALL_MODEL))
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> State:
    model = load_clip_model(str(config), "random", "reference", 7).model
    return {name: value + 0.5 for name, value in model.state_dict().items()}


def load(config: Path, path: Path, plain: bool = True) -> State:
    return load_clip_model(str(config), str(path), "reference", plain=plain).model.state_dict()


def same(actual: State, state: State) -> bool:
    return actual.keys() == state.keys() and all(torch.equal(actual[k], state[k]) for k in state)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


# ------------------------------------------------------------ CLIP models of other trainers

TEXT = ("positional_embedding", "token_embedding", "transformer", "ln_final", "text_projection")


def as_custom_text(state: State) -> State:
    return {f"text.{k}" if k.startswith(TEXT) else k: value for k, value in state.items()}


CHANGES: dict[str, Callable[[State], Any]] = {
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "ddp of compiled": lambda s: prefixed(s, "module._orig_mod."),
    "compiled ddp": lambda s: {"state_dict": prefixed(s, "_orig_mod.module.")},
    "compiled tower": lambda s: {k.replace("visual.", "visual._orig_mod."): s[k] for k in s},
    "custom text": as_custom_text,
    "ddp of custom text": lambda s: {"state_dict": prefixed(as_custom_text(s), "module.")},
    "custom text with its mask": lambda s: as_custom_text(s) | {"text.attn_mask": torch.ones(2)},
    "scale with a dimension": lambda s: {**s, "logit_scale": s["logit_scale"].reshape(1)},
    "of OpenAI's archive": lambda s: s | {
        name: torch.tensor(3) for name in ("input_resolution", "context_length", "vocab_size")
    },
    "with arguments": lambda s: {
        "epoch": 5, "name": "run", "state_dict": prefixed(s, "module."), "scaler": {"scale": 2.0},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 1)}]},
        "args": argparse.Namespace(model="ViT-B-32", logs=Path("logs"), device="cuda:0"),
    },
    "double": lambda s: {k: value.double() for k, value in s.items()},
    "with FLYT's temperature": lambda s: prefixed(
        s | {"downstream_logit_scale": torch.tensor(2.6)}, "module."
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("zipped", [True, False])
def test_clip_models(
    tmp_path: Path, config: Path, trained: State, change: Callable[[State], Any], zipped: bool
) -> None:
    path = tmp_path / "epoch_latest.pt"
    torch.save(change(trained), path, _use_new_zipfile_serialization=zipped)
    assert same(load(config, path), trained)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_files_of_a_hub(tmp_path: Path, config: Path, trained: State, name: str) -> None:
    path = tmp_path / name
    (save_file if name.endswith("s") else torch.save)(trained, path)
    assert same(load(config, path), trained)
    assert f"such as {name}" in refusal(load, config, tmp_path)


def test_bfloat16(tmp_path: Path, config: Path, trained: State) -> None:
    half = {name: value.bfloat16() for name, value in trained.items()}
    expected = {name: value.float() for name, value in half.items()}
    torch.save(half, tmp_path / "c.pt")
    save_file(half, tmp_path / "c.safetensors")
    assert same(load(config, tmp_path / "c.pt"), expected)
    assert same(load(config, tmp_path / "c.safetensors"), expected)


def test_a_plain_checkpoint_into_a_custom_text_model(tmp_path: Path, trained: State) -> None:
    path = tmp_path / "flyt-test-people-custom.json"
    path.write_text(json.dumps({**SMALL_MODEL, "custom_text": True}))
    torch.save(trained, tmp_path / "c.pt")
    actual = load(path, tmp_path / "c.pt", plain=False)
    assert all(torch.equal(actual[name], value) for name, value in as_custom_text(trained).items())


HF = {
    "text_model.embeddings.position_ids": torch.ones(1, 77),
    "text_model.embeddings.token_embedding.weight": torch.ones(5, 4),
    "vision_model.embeddings.class_embedding": torch.ones(4),
    "logit_scale": torch.ones([]),
}
OTHERS: dict[str, tuple[Callable[[State], Any], list[str]]] = {
    "transformers": (lambda s: HF, ["text_model.embeddings", "open_clip_pytorch_model.bin"]),
    "a classifier": (lambda s: {"weight": torch.ones(1, 4), "bias": torch.ones(1)}, ["weight"]),
    "no scale": (
        lambda s: {k: v for k, v in s.items() if k != "logit_scale"},
        ["logit_scale is missing, wanted []"],
    ),
    "SigLIP": (lambda s: s | {"logit_bias": torch.tensor(1.0)}, ["logit_bias is not known"]),
    "another resolution": (
        lambda s: s | {"visual.positional_embedding": torch.ones(17, 32)},
        ["visual.positional_embedding is [17, 32], wanted [5, 32]", "flyt-test-people"],
    ),
    "another width": (
        lambda s: s | {"text_projection": torch.ones(16, 8)},
        ["text_projection is [16, 8], wanted [16, 16]"],
    ),
    "image tower alone": (
        lambda s: {k: v for k, v in s.items() if k.startswith("visual.")},
        ["is missing", "name its own model"],
    ),
    "half wrapped": (
        lambda s: {k if "text" in k else f"module.{k}": v for k, v in s.items()},
        ["module.", "save the state dict of one"],
    ),
    "scale of many": (lambda s: s | {"logit_scale": torch.ones(3)}, ["logit_scale is [3]"]),
}


@pytest.mark.parametrize(("change", "named"), OTHERS.values(), ids=OTHERS.keys())
def test_other_architectures(
    tmp_path: Path, config: Path, trained: State, change: Callable[[State], Any], named: list[str]
) -> None:
    torch.save(change(trained), tmp_path / "c.pt")
    message = refusal(load, config, tmp_path / "c.pt")
    assert message.startswith(f"--reference_init {tmp_path / 'c.pt'} ")
    assert all(part in message for part in named)


# ------------------------------------------------------------------------------- other models

PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("zipped", [True, False])
def test_scoring_models(
    tmp_path: Path, config: Path, trained: State, prefix: str, zipped: bool
) -> None:
    """Published layouts are loaded, also with the prefixes of DDP and torch.compile."""

    def save(state: State) -> Path:
        content = {"name": "run", "state_dict": prefixed(state, prefix)}
        torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        return tmp_path / "m.pt"

    head = made_head(WIDTH)
    parts = {k: torch.from_numpy(v) for k, v in head.tensors("glu_model.").items()}
    path = save({**parts, **prefixed(trained, "clip_model.")})
    actual = load_glu_head(path).tensors()
    assert all(np.array_equal(actual[name], value) for name, value in head.tensors().items())
    assert EFlytImages(str(path), model=str(config)).columns == ("FLYT",)
    mixing = {"layers.0.weight": torch.arange(12.0)[None], "layers.0.bias": torch.ones(1)}
    assert load_mixing_model(str(save(mixing))).weights == tuple(range(12))
    classifier = load_classifier(save({"weight": torch.ones(1, 4), "bias": torch.zeros(1)}))
    assert classifier.weight.tolist() == [1.0] * 4
    state = made_state()
    assert load_hype_model(save(state), "checkpoint").width == state["visual.proj"].shape[1]
    scale = {"logit_scale": torch.tensor([np.log(20.0)])}
    assert temperature_of(save(scale), "--checkpoint") == pytest.approx(0.05)


READERS: dict[str, Callable[[Path], Any]] = {
    "mixing": lambda path: load_mixing_model(str(path)),
    "glu": load_glu_head,
    "classifier": load_classifier,
    "hype": lambda path: load_hype_model(path, "checkpoint"),
    "temperature": lambda path: temperature_of(path, "--checkpoint"),
    "targets": lambda path: load_targets([str(path)], "b32_img"),
    "resume": lambda path: load_checkpoint(path.parent, {}),
}


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_every_reader_refuses_with_the_same_message(
    tmp_path: Path, reader: Callable[[Path], Any]
) -> None:
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "ran"
    for zipped in (True, False):
        torch.save({"x": Evil(mark)}, path, _use_new_zipfile_serialization=zipped)
        message = refusal(reader, path)
        assert str(path) in message
        assert "system, which is code" in message
    for content, named in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html><html>", "web page"),
        (b"", "is empty"),
        (b"PK\x03\x04 and no more", "cut short"),
    ):
        path.write_bytes(content)
        message = refusal(reader, path)
        assert str(path) in message
        assert named in message
    assert not mark.exists()


def test_a_command_ends_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mark = tmp_path / "c.pt", tmp_path / "ran"
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": Evil(mark)}, path)
    words = ["score", "--scorer", "dfn", "--model", "flyt-tiny", "--checkpoint", str(path)]
    with pytest.raises(SystemExit) as end:
        main([*words, "--shards_dir", str(tmp_path), "--scores_dir", str(tmp_path / "out")])
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    assert f"--checkpoint {path} cannot be read: it holds " in lines[0]
    assert not mark.exists()


def test_resume_keeps_every_number(tmp_path: Path) -> None:
    state = {
        "params": {"w": torch.randn(3, 2).double(), "n": torch.tensor(3)},
        "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 1e-3}]},
        "betas": (0.9, 0.98), "mask": torch.tensor([True, False]), "none": None,
        "half": torch.randn(4).half(),
    }  # fmt: skip
    save_checkpoint(tmp_path, 5, {"seed": 1}, state)
    step, actual = load_checkpoint(tmp_path, {"seed": 1}) or (0, {})
    assert step == 5
    torch.testing.assert_close(actual, state, rtol=0, atol=0)
