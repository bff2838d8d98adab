"""HYPE's model, tokens, transform and geometry, against the public code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from PIL import Image

from datacomp_flyt.clip.inference import inference
from datacomp_flyt.scorers.hype.hype import Hype
from datacomp_flyt.scorers.hype.hyperbolic import (
    exponential_map,
    lorentz_distance,
    mean_over_cones,
    mean_over_points,
)
from datacomp_flyt.scorers.hype.model import HypeModel
from tests.scorers.hype.made_hype import (
    RELEASED,
    TINY,
    Sizes,
    layout,
    made_inputs,
    made_reference,
    made_state,
    made_vectors,
    save,
)
from tests.scorers.hype.public_hype import public_geometry, public_module, requires_checkout

pytestmark = [pytest.mark.slow, requires_checkout]

CURVATURES = [0.1, 0.5, 1.0]


def public_model(sizes: Sizes) -> torch.nn.Module:
    vision = {"width": sizes.width, "layers": sizes.layers, "patch_size": sizes.patch}
    text = {"width": sizes.text_width, "layers": sizes.text_layers, "vocab_size": sizes.vocab}
    model = public_module("model").CLIP(
        embed_dim=sizes.out,
        vision_cfg=vision | {"image_size": sizes.patch * sizes.grid},
        text_cfg=text | {"context_length": sizes.context, "heads": sizes.text_width // 64},
    )
    return model.eval()


@pytest.mark.parametrize("sizes", [TINY, Sizes(64, 3, 5, 3, 128, 1, 77, 200, 16), RELEASED])
def test_model(sizes: Sizes) -> None:
    state = made_state(sizes)
    public = public_model(sizes)
    assert {name: tuple(tensor.shape) for name, tensor in public.state_dict().items()} == layout(
        sizes
    )
    public.load_state_dict(state, assign=True)
    ours = HypeModel(state, "a test")
    images, texts = made_inputs(sizes, 3)
    with torch.inference_mode():
        for found, wanted in (
            (ours.encode_image(images), public.encode_image(images)),
            (ours.encode_text(texts), public.encode_text(texts)),
        ):
            error = float((found - wanted).abs().max() / wanted.abs().max())
            print(f"{sizes}: largest error {error:.1e} of the largest number")
            assert error < 3e-5
    assert ours.c == float(public.curvature.detach().exp())


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("scale", [0.01, 0.03, 0.1])
def test_geometry(tmp_path: Path, c: float, scale: float) -> None:
    reference = {
        "img": made_vectors(300, 768, 1, scale).float(),
        "txt": made_vectors(200, 768, 2, 0.7 * scale).float(),
    }
    public = public_geometry(tmp_path, reference)
    images, texts = made_vectors(40, 768, 3, scale), made_vectors(40, 768, 4, 0.7 * scale)
    image, text = exponential_map(images, c), exponential_map(texts, c)
    img, txt = (exponential_map(reference[name].double(), c) for name in ("img", "txt"))
    curvature = torch.tensor(c)
    for name, found, wanted in (
        (
            "distance",
            -lorentz_distance(image, text, c),
            public.similarity(images.float(), texts.float(), curvature).diagonal(),
        ),
        (
            "image specificity",
            mean_over_cones(txt, image, c),
            public.specificity(image=images.float(), curv=curvature),
        ),
        (
            "text specificity",
            mean_over_points(text, img, c),
            public.specificity(text=texts.float(), curv=curvature),
        ),
    ):
        assert wanted.isfinite().all()
        error = float((found - wanted).abs().max())
        print(f"{name}, c {c}, scale {scale}: largest error {error:.1e}")
        assert error < 5e-5, name


@pytest.mark.parametrize("c", CURVATURES)
def test_where_the_public_code_is_not_a_number(tmp_path: Path, c: float) -> None:
    """Points that coincide; everything else is as there."""
    public = public_geometry(tmp_path, made_reference(768))
    vectors = made_vectors(500, 768, 5, 0.03).float()
    there = public.similarity(vectors, vectors, torch.tensor(c)).diagonal()
    point = exponential_map(vectors, c)
    here = -lorentz_distance(point, point, c)
    assert there.isnan().any()
    assert here.isfinite().all()
    finite = there.isfinite()
    torch.testing.assert_close(here[finite], there[finite], atol=5e-3, rtol=0)


def test_scores(tmp_path: Path) -> None:
    """From pictures and captions to the three scores."""
    reference, state = made_reference(), made_state()
    scorer = Hype(save(tmp_path / "c.pt", state), save(tmp_path / "r.pt", reference))
    scorer.load("cpu")
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (20 + 7 * row, 31, 3), np.uint8)) for row in range(6)
    ]
    captions = [
        "a cat",
        "",
        "Two  DOGS &amp; birds",
        "long " * 50,
        "ürban\tsøn 東京 🙂",
        "it's 42%",
    ]
    transform = public_module("model").image_transform(TINY.patch * TINY.grid)
    tokenize = public_module("tokenizer").tokenize
    images = torch.stack([transform(picture) for picture in pictures])
    assert torch.equal(images, torch.stack([scorer.transform(picture) for picture in pictures]))
    texts = tokenize(captions, TINY.context)
    assert torch.equal(texts, scorer.tokenize(captions))

    model = public_model(TINY)
    model.load_state_dict(state)
    geometry = public_geometry(tmp_path, reference)
    with inference(torch.device("cpu"), "fp32"):
        found = scorer.score_batch(images, texts)
        c = model.curvature.exp()
        image, text = model.encode_image(images), model.encode_text(texts)
        wanted = [
            geometry.similarity(image, text, c).diagonal(),
            geometry.specificity(image=image, curv=c),
            geometry.specificity(text=text, curv=c),
        ]
    error = float((found - torch.stack(wanted, 1)).abs().max())
    print(f"scores: largest error {error:.1e}")
    assert error < 2e-5
