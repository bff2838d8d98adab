"""HYPE's encoders from tensors of the released layout, against loops in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from safetensors.torch import save_file

from datacomp_flyt.scorers.hype.model import HypeModel, State, load_hype_model, load_reference
from tests.conftest import refusal
from tests.oracles.hype_model import image_vector, text_vector
from tests.scorers.hype.made_hype import Sizes, made_inputs, made_reference, made_state, save

SIZES = Sizes(vocab=50)


@pytest.mark.parametrize(
    "sizes", [SIZES, Sizes(64, 1, 3, 3, 128, 1, 5, 20, 6), Sizes(64, 3, 5, 1, 64, 2, 9, 30, 16)]
)
def test_encoders_are_those_of_the_loop(sizes: Sizes) -> None:
    state = made_state(sizes)
    model = HypeModel(state, "a test")
    images, texts = made_inputs(sizes)
    exact = {name: tensor.double().numpy() for name, tensor in state.items()}
    with torch.inference_mode():
        found = model.encode_image(images), model.encode_text(texts)
    wanted = (
        np.stack([image_vector(exact, image) for image in images.double().numpy()]),
        np.stack([text_vector(exact, text) for text in texts.numpy()]),
    )
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        bound = sizes.bound(np.abs(other).max())
        np.testing.assert_allclose(one.numpy(), other, rtol=0, atol=bound)


def test_what_a_model_says_of_itself() -> None:
    state = made_state(SIZES)
    model = HypeModel(state, "a test")
    assert (model.image_size, model.context_length, model.vocab_size, model.width) == (8, 12, 50, 8)
    assert model.c == pytest.approx(float(state["curvature"].double().exp()))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_building_a_model_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    HypeModel(made_state(SIZES), "a test")
    assert torch.equal(torch.get_rng_state(), before)


def with_module(state: State) -> object:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        dict,
        with_module,
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: state | {"attn_mask": torch.zeros(12, 12)},
        lambda state: {name: tensor.half() for name, tensor in state.items()},
        "safetensors",
    ],
)
def test_files(tmp_path: Path, content: Callable[[State], object] | str) -> None:
    state = {name: tensor.half().float() for name, tensor in made_state(SIZES).items()}
    images, texts = made_inputs(SIZES)
    wanted = HypeModel(state, "a test")
    if isinstance(content, str):
        path = tmp_path / "m.safetensors"
        save_file(state, path)
    else:
        path = save(tmp_path / "m.pt", content(state))
    model = load_hype_model(path, "checkpoint")
    assert torch.equal(model.encode_image(images), wanted.encode_image(images))
    assert torch.equal(model.encode_text(texts), wanted.encode_text(texts))


WRONG: dict[str, tuple[Callable[[State], object], str]] = {
    "plain CLIP": (
        lambda s: {k: v for k, v in s.items() if k not in ("alpha_img", "alpha_txt", "curvature")},
        "alpha_img is missing, wanted [] (3 such tensors)",
    ),
    "another shape": (
        lambda s: s | {"visual.proj": torch.ones(100, 8)},
        "visual.proj is [100, 8], wanted [128, 8]",
    ),
    "patches": (
        lambda s: s | {"visual.positional_embedding": torch.ones(8, 128)},
        "visual.positional_embedding is [8, 128], wanted [10, 128]",
    ),
    "no patches": (
        lambda s: s | {"visual.positional_embedding": torch.ones(1, 128)},
        "visual.positional_embedding is [1, 128], wanted [2, 128]",
    ),
    "outputs": (
        lambda s: s | {"text_projection": torch.ones(64, 9)},
        "text_projection is [64, 9], wanted [64, 8]",
    ),
    "MLP": (
        lambda s: s | {"transformer.resblocks.1.mlp.c_fc.weight": torch.ones(64, 64)},
        "transformer.resblocks.1.mlp.c_fc.weight is [64, 64], wanted [256, 64]",
    ),
    "a layer": (
        lambda s: {
            k: v for k, v in s.items() if not k.startswith("visual.transformer.resblocks.0")
        },
        "visual.transformer.resblocks.0.ln_1.weight is missing",
    ),
    "no layers": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("transformer")},
        "transformer.resblocks.0.ln_1.weight is missing",
    ),
    "ResNet": (
        lambda s: {k: v for k, v in s.items() if k != "visual.class_embedding"},
        "visual.class_embedding is missing",
    ),
    "no patch kernel": (
        lambda s: s | {"visual.conv1.weight": torch.ones(128, 48)},
        "visual.conv1.weight is of shape [128, 48]",
    ),
    "another model": (lambda s: {"weight": torch.ones(3)}, "visual.conv1.weight is missing"),
    "width": (
        lambda s: s | {"token_embedding.weight": torch.ones(50, 60)},
        "its width for texts is 60, which is no multiple of 64",
    ),
    "curvature": (lambda s: s | {"curvature": torch.ones(1)}, "curvature is [1], wanted []"),
    "NaN": (
        lambda s: s | {"visual.ln_post.bias": torch.full((128,), torch.nan)},
        "is damaged: visual.ln_post.bias is not finite",
    ),
    "nothing": (lambda s: {}, "holds no state dict"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_of_other_models(tmp_path: Path, case: str) -> None:
    change, wanted = WRONG[case]
    path = save(tmp_path / "m.pt", change(made_state(SIZES)))
    message = refusal(load_hype_model, path, "checkpoint")
    assert message.startswith(f"--checkpoint {path} ")
    assert wanted in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(load_hype_model, tmp_path / "m.pt", "checkpoint")
    (tmp_path / "m.pt").write_bytes(b"no torch file")
    assert "cannot be read" in refusal(load_hype_model, tmp_path / "m.pt", "checkpoint")
    save(tmp_path / "m.pt", {"visual.proj": Path("code")})
    assert "cannot be read" in refusal(load_hype_model, tmp_path / "m.pt", "checkpoint")


@pytest.mark.parametrize("kind", ["pt", "half", "safetensors"])
def test_reference_sets(tmp_path: Path, kind: str) -> None:
    content = {name: tensor.half().float() for name, tensor in made_reference().items()}
    if kind == "safetensors":
        path = tmp_path / "r.safetensors"
        save_file(content, path)
    else:
        half = {name: tensor.half() for name, tensor in content.items()}
        path = save(tmp_path / "r.pt", half if kind == "half" else content)
    images, texts = load_reference(path, "reference", 8)
    assert torch.equal(images, content["img"])
    assert torch.equal(texts, content["txt"])


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"txt": torch.ones(4, 9)}, "has 'txt' of shape [4, 9] and the model puts out 8 numbers"),
        ({"img": torch.ones(0, 8)}, "has 'img' of shape [0, 8]"),
        ({"img": torch.ones(8)}, "has 'img' of shape [8]"),
        ({"img": torch.full((2, 8), torch.inf)}, "has values in 'img' that are not finite"),
        ({"txt": "none"}, "has no 'txt'"),
    ],
)
def test_reference_sets_of_other_models(
    tmp_path: Path, change: dict[str, object], wanted: str
) -> None:
    path = save(tmp_path / "r.pt", made_reference() | change)
    message = refusal(load_reference, path, "reference", 8)
    assert message.startswith(f"--reference {path} ")
    assert wanted in message
