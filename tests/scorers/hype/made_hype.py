"""Small hyperbolic CLIPs in the released layout, and reference sets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.tolerances import float_bound

State = dict[str, Tensor]


class Sizes(NamedTuple):
    """The sizes of a model. It has the vocabulary of CLIP's tokenizer; the others are small."""

    width: int = 128
    layers: int = 2
    patch: int = 4
    grid: int = 2
    text_width: int = 64
    text_layers: int = 3
    context: int = 12
    vocab: int = 49408
    out: int = 8

    def bound(self, magnitude: float, computed: int = 1) -> float:
        """Bound the float32 error of an encoder: all products on the longest path in a tower.

        A block adds to what it is given, so that errors of blocks are added: two norms (mean and
        variance), queries, scores, values, output, and the two layers of the perceptron.
        """
        paths = []
        for width, layers, length, first in (
            (self.width, self.layers, self.grid**2 + 1, 3 * self.patch**2),
            (self.text_width, self.text_layers, self.context, 1),
        ):
            block = 2 * 2 * width + 3 * width + length + width + 4 * width
            paths.append(first + layers * block + 2 * 2 * width + width)
        return float_bound("float32", magnitude, max(paths), computed)


TINY = Sizes()
RELEASED = Sizes(1024, 24, 14, 16, 768, 12, 77, 49408, 768)


def layout(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (sizes.width,),
        "visual.positional_embedding": (sizes.grid**2 + 1, sizes.width),
        "visual.proj": (sizes.width, sizes.out),
        "visual.conv1.weight": (sizes.width, 3, sizes.patch, sizes.patch),
        "token_embedding.weight": (sizes.vocab, sizes.text_width),
        "positional_embedding": (sizes.context, sizes.text_width),
        "text_projection": (sizes.text_width, sizes.out),
    } | dict.fromkeys(("logit_scale", "curvature", "alpha_img", "alpha_txt"), ())
    norms = {"visual.ln_pre": sizes.width, "visual.ln_post": sizes.width}
    norms["ln_final"] = sizes.text_width
    for tower, width, layers in (
        ("visual.transformer", sizes.width, sizes.layers),
        ("transformer", sizes.text_width, sizes.text_layers),
    ):
        for block in (f"{tower}.resblocks.{number}" for number in range(layers)):
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
            for name, rows, columns in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                shapes[f"{block}.{name}weight"] = (rows, columns)
                shapes[f"{block}.{name}bias"] = (rows,)
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def made_state(sizes: Sizes = TINY, seed: int = 0) -> State:
    """Random weights.

    Embeddings are so small that the epsilon of a LayerNorm matters, matrices so large that the
    activations are not linear.
    """
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout(sizes).items():
        if "embedding" in name or "conv1" in name:
            scale = 1e-3
        else:
            scale = 1.5 * shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        state[name] = torch.randn(shape, generator=random) * scale
        if ".ln_" in f".{name}" and name.endswith("weight"):
            state[name] += 1
    state["alpha_img"] -= 0.5
    state["alpha_txt"] -= 0.9
    state["curvature"] -= 0.6
    return state


def made_inputs(sizes: Sizes = TINY, rows: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images and tokens: a text ends with the largest token, and zeros follow."""
    random = torch.Generator().manual_seed(seed)
    side = sizes.patch * sizes.grid
    images = torch.randn((rows, 3, side, side), generator=random)
    texts = torch.randint(1, sizes.vocab - 2, (rows, sizes.context), generator=random)
    for row, length in enumerate(torch.randint(1, sizes.context, (rows,), generator=random)):
        texts[row, int(length)] = sizes.vocab - 1
        texts[row, int(length) + 1 :] = 0
    return images, texts


def made_vectors(rows: int, width: int, seed: int, scale: float = 0.3) -> Tensor:
    """Tangent vectors in float64."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn((rows, width), generator=random, dtype=torch.float64) * scale


def made_reference(width: int = TINY.out, images: int = 6, texts: int = 9) -> State:
    return {
        "img": made_vectors(images, width, 11).float(),
        "txt": made_vectors(texts, width, 12, 0.2).float(),
    }


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()
