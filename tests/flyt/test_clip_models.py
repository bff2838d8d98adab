"""CLIP models by name and by file, and files that are refused."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import open_clip
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from datacomp_flyt.clip.models import ClipModel, load_clip_model, read_state_dict
from tests.conftest import refusal
from tests.flyt.runs import SMALL_MODEL

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "flyt-test-small.json"
    path.write_text(json.dumps(SMALL_MODEL))
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> State:
    """Return weights that differ from any initialization."""
    model = load(config, seed=7).model
    return {name: value + 0.5 for name, value in model.state_dict().items()}


def load(config: Path | str, init: str | Path | None = "random", seed: int = 0) -> ClipModel:
    return load_clip_model(str(config), None if init is None else str(init), "reference", seed)


def same(model: nn.Module, state: State) -> bool:
    actual = model.state_dict()
    return actual.keys() == state.keys() and all(torch.equal(actual[k], state[k]) for k in state)


def test_random_weights_depend_on_the_seed_alone(config: Path) -> None:
    torch.manual_seed(11)
    random.seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = load(config).model
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(12)
    assert same(load(config).model, first.state_dict())
    assert not same(load(config, seed=1).model, first.state_dict())


def test_a_model_has_its_transforms_and_tokenizer(config: Path) -> None:
    actual = load(config)
    image = actual.transform(Image.new("RGB", (50, 40), (255, 0, 0)))
    tokens = actual.tokenize(["a red picture", "another"])
    assert image.shape == (3, 32, 32)
    assert tokens.shape == (2, 12)
    features = actual.model(image[None], tokens)
    assert features[0].shape == (1, 16)
    assert features[1].shape == (2, 16)
    red = torch.tensor([1.0, 0.0, 0.0])
    mean, std = (
        torch.tensor(open_clip.OPENAI_DATASET_MEAN),
        torch.tensor(open_clip.OPENAI_DATASET_STD),
    )
    torch.testing.assert_close(image[:, 16, 16], (red - mean) / std)


def test_images_are_cropped_as_in_training(config: Path) -> None:
    """The training transform crops 90 to 100% of the area, as in FLYT's public code."""
    ramp = np.arange(200, dtype=np.uint8)[None, :, None].repeat(200, 0).repeat(3, 2)
    transform = load(config).transform
    widths = []
    for _ in range(100):
        row = transform(Image.fromarray(ramp))[0, 16] * open_clip.OPENAI_DATASET_STD[0] * 255
        widths.append(float(row[-3] - row[2]) / 27 * 32 / 200)
    assert 0.75 < min(widths) < 0.95
    assert max(widths) < 1.15
    assert max(widths) - min(widths) > 0.02


def test_our_configuration_and_names_of_open_clip() -> None:
    own = load("flyt-tiny").model
    assert own.visual.image_size == (32, 32)
    assert own.encode_text(torch.zeros(1, 16).long()).shape == (1, 64)
    theirs = load("ViT-S-32-alt").model
    assert theirs.encode_text(torch.zeros(1, 77).long()).shape == (1, 256)


def as_bare(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def under_state_dict(state: State, path: Path) -> Path:
    torch.save({"state_dict": state}, path)
    return path


def of_several_gpus(state: State, path: Path) -> Path:
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    return path


def as_safetensors(state: State, path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file(state, path)
    return path


def of_open_clips_trainer(state: State, path: Path) -> Path:
    """Write a checkpoint like epoch_k.pt of open_clip_train.main."""
    params = [nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(params)
    params[0].grad = torch.ones(2)
    optimizer.step()
    torch.save(
        {
            "epoch": 3,
            "name": "run",
            "state_dict": {f"module.{name}": value for name, value in state.items()},
            "optimizer": optimizer.state_dict(),
            "scaler": {"scale": 65536.0, "_growth_tracker": 5},
        },
        path,
    )
    return path


def of_flyts_trainer(state: State, path: Path) -> Path:
    """Write a checkpoint of FLYT's trainer, with the downstream temperature beside the model."""
    torch.save({"state_dict": {**state, "downstream_logit_scale": torch.tensor(2.6)}}, path)
    return path


def of_older_open_clip(state: State, path: Path) -> Path:
    torch.save({**state, "text.embeddings.position_ids": torch.arange(4)}, path)
    return path


def in_flyt_pt(state: State, path: Path) -> Path:
    head = {"glu_model.layers.0.w1.weight": torch.ones(2, 2)}
    torch.save({**{f"clip_model.{name}": value for name, value in state.items()}, **head}, path)
    return path


@pytest.mark.parametrize(
    "write",
    [
        as_bare,
        under_state_dict,
        of_several_gpus,
        as_safetensors,
        of_open_clips_trainer,
        of_flyts_trainer,
        of_older_open_clip,
        in_flyt_pt,
    ],
)
def test_checkpoints_in_each_layout(
    tmp_path: Path, config: Path, trained: State, write: Callable[[State, Path], Path]
) -> None:
    model = load(config, write(trained, tmp_path / "c.pt")).model
    assert same(model, trained)


def test_a_half_precision_checkpoint_becomes_float32(
    tmp_path: Path, config: Path, trained: State
) -> None:
    torch.save({name: value.half() for name, value in trained.items()}, tmp_path / "c.pt")
    model = load(config, tmp_path / "c.pt").model
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    assert same(model, {name: value.half().float() for name, value in trained.items()})


def changed(state: State, **changes: Tensor | None) -> State:
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"logit_scale": None}, "logit_scale is missing, wanted []"),
        ({"text_projection": torch.ones(3, 16)}, "text_projection is [3, 16], wanted [16, 16]"),
        ({"visual.new": torch.ones(2)}, "visual.new is not known"),
    ],
)
def test_weights_of_another_architecture(
    tmp_path: Path, config: Path, trained: State, changes: dict[str, Tensor | None], named: str
) -> None:
    torch.save(changed(trained, **changes), tmp_path / "c.pt")
    message = refusal(load, config, tmp_path / "c.pt")
    assert "--reference_init" in message
    assert named in message
    assert "flyt-test-small" in message


def test_a_larger_model_says_how_many_tensors_differ(tmp_path: Path, config: Path) -> None:
    torch.save(load("flyt-tiny").model.state_dict(), tmp_path / "c.pt")
    message = refusal(load, config, tmp_path / "c.pt")
    assert "such tensors" in message


class _Runs:
    """An object whose unpickling would run code."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


@pytest.mark.parametrize("inside", [True, False])
def test_a_checkpoint_cannot_run_code(
    tmp_path: Path, config: Path, trained: State, inside: bool
) -> None:
    marker = tmp_path / "ran"
    hostile: Any = _Runs(str(marker))
    torch.save({"state_dict": trained, "args": hostile} if inside else hostile, tmp_path / "c.pt")
    message = refusal(load, config, tmp_path / "c.pt")
    assert "--reference_init" in message
    assert not marker.exists()


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch reads them from version 2.6 on")
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_learning_rates_of_open_clip_2_are_numpy_scalars(tmp_path: Path, kind: type) -> None:
    path, weight = tmp_path / "epoch_latest.pt", torch.arange(3.0)
    torch.save({"state_dict": {"module.w": weight}, "optimizer": [{"lr": kind(1)}]}, path)
    state = read_state_dict(path, "checkpoint")
    assert state.keys() == {"w"}
    assert torch.equal(state["w"], weight)


def test_damaged_files(tmp_path: Path, config: Path, trained: State) -> None:
    """Truncated files, noise and other files give one sentence that names the flag."""
    whole = {
        "pt": as_bare(trained, tmp_path / "whole.pt").read_bytes(),
        "safetensors": as_safetensors(trained, tmp_path / "whole").read_bytes(),
    }
    noise = random.Random(0).randbytes(1000)
    for kind, content in whole.items():
        cuts = [content[: int(share * len(content))] for share in (0, 1e-5, 0.01, 0.5, 0.999)]
        for damaged in [*cuts, noise, b"not a checkpoint at all\n"]:
            path = tmp_path / f"damaged.{kind}"
            path.write_bytes(damaged)
            message = refusal(load, config, path)
            assert f"--reference_init {path}" in message


@pytest.mark.parametrize("content", [{}, [torch.ones(2)], torch.ones(2), {"state_dict": {}}, 5])
def test_checkpoints_without_a_state_dict(tmp_path: Path, config: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.pt")
    assert "--reference_init" in refusal(load, config, tmp_path / "c.pt")


def test_unknown_weights_and_models(tmp_path: Path, config: Path) -> None:
    message = refusal(load, config, "openai")
    assert "--reference_init openai" in message
    assert "none" in message  # the list of the pretrained tags of this model
    assert "openai" in refusal(load, "ViT-B-32", "no_such_tag").split("which are")[1]
    assert "--reference_init" in refusal(load, config, None)
    assert "'random'" in refusal(load, config, None)
    for name in ("ViT-B-33", str(tmp_path / "none.json"), ""):
        assert f"--reference_model {name}" in refusal(load, name)
    message = refusal(lambda: load_clip_model("ViT-B-33", "random", "extractor"))
    assert "--extractor_model ViT-B-33" in message


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "JSON"),
        ("[]", "embed_dim"),
        ("5", "JSON"),
        ('{"embed_dim": 16}', "vision_cfg"),
        (json.dumps(SMALL_MODEL | {"text_cfg": {"colour": 3}}), "--reference_model"),
        (json.dumps(SMALL_MODEL | {"vision_cfg": 7}), "--reference_model"),
        (json.dumps(SMALL_MODEL | {"embed_dim": "wide"}), "--reference_model"),
    ],
)
def test_invalid_configurations_are_refused(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / f"flyt-test-broken-{abs(hash(content))}.json"
    path.write_text(content)
    message = refusal(load, path)
    assert "--reference_model" in message
    assert named in message


def test_a_tokenizer_of_77_tokens_is_cut_to_the_models_length(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """get_tokenizer of open_clip 2.16.1 returns such a tokenizer for every model."""
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: open_clip.tokenize)
    tokens = load(config).tokenize(["a red picture"])
    assert tokens.shape == (1, 12)
    assert torch.equal(tokens, open_clip.tokenize(["a red picture"])[:, :12])


def test_a_tokenizer_that_needs_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flyt-test-tokenizer.json"
    text_cfg = {**SMALL_MODEL["text_cfg"], "hf_tokenizer_name": "no/such"}
    path.write_text(json.dumps(SMALL_MODEL | {"text_cfg": text_cfg}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = refusal(load, path)
    assert f"--reference_model {path}" in message
    assert "transformers" in message


def test_a_file_with_the_name_of_another_model(tmp_path: Path, config: Path) -> None:
    """open_clip looks models up by name only, and would load the other model."""
    load(config)
    for name in (config.name, "RN50.json"):
        path = tmp_path / name
        path.write_text(json.dumps(SMALL_MODEL | {"embed_dim": 20}))
        message = refusal(load, path)
        assert f"--reference_model {path}" in message
        assert "rename" in message
    copy = tmp_path / "copy" / config.name
    copy.parent.mkdir()
    copy.write_text(config.read_text())
    assert load(copy).model.text_projection.shape == (16, 16)


def test_models_with_more_than_two_towers_are_refused(tmp_path: Path) -> None:
    decoder = {**SMALL_MODEL["text_cfg"], "width": 32, "heads": 2, "layers": 1}
    configs = {
        "coca": {"multimodal_cfg": decoder, "custom_text": True},
        "biased": {"init_logit_bias": -10.0},  # like SigLIP
    }
    for name, more in configs.items():
        path = tmp_path / f"small-{name}.json"
        path.write_text(json.dumps({**SMALL_MODEL, **more}))
        message = refusal(load, path)
        assert f"--reference_model small-{name} is more than" in message
