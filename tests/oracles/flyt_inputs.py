"""Small random inputs of one FLYT step: a CLIP of two small towers, and two batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALL_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "image_size": 16,
    },
    "text_cfg": {
        "context_length": 8,
        "vocab_size": 100,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
    "quick_gelu": False,
}


@dataclass(frozen=True)
class Upstream:
    """A batch of pairs: `images` [B, 3, H, W] and `texts` [B, L] int64."""

    images: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Downstream:
    """A labelled batch and its loss.

    Attributes:
        images: [B', 3, H, W].
        labels: [B'] int64, indices into the concatenated classes of all tasks.
        class_counts: the number of classes of each task.
        prompts: [K, L] int64, one text for each class.
        captions: [B', L] int64, one text for each example.
        loss: "cross_entropy" or "clip".
        log_temperature: the logarithm of the temperature; None for a temperature of 1.
    """

    images: Tensor
    labels: Tensor
    class_counts: tuple[int, ...]
    prompts: Tensor
    captions: Tensor
    loss: str = "cross_entropy"
    log_temperature: Tensor | None = None


def small_clip(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Make a small open_clip.CLIP in eval mode, without parameters that are 0 or 1.

    With open_clip's initialization the cosines are nearly equal for all inputs; larger embeddings
    and biases spread them.
    """
    from open_clip import CLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(
            embed_dim=SMALL_CONFIG["embed_dim"],
            vision_cfg=CLIPVisionCfg(**SMALL_CONFIG["vision_cfg"]),
            text_cfg=CLIPTextCfg(**SMALL_CONFIG["text_cfg"]),
            quick_gelu=SMALL_CONFIG["quick_gelu"],
        )
        with torch.no_grad():
            for name, param in model.named_parameters():
                if name == "logit_scale":
                    param.fill_(math.log(10.0))
                elif "embedding" in name:
                    param.normal_(std=0.5)
                elif param.ndim < 2:
                    param.add_(0.1 * torch.randn_like(param))
                else:
                    param.mul_(2.0)
    return model.to(dtype).eval()


def random_texts(rows: int, generator: torch.Generator) -> Tensor:
    """Return [rows, L] int64: words, the end token (the largest) at a random position, zeros."""
    text_cfg = SMALL_CONFIG["text_cfg"]
    length, end = text_cfg["context_length"], text_cfg["vocab_size"] - 1
    texts = torch.randint(1, end, (rows, length), generator=generator)
    for row, position in enumerate(torch.randint(2, length, (rows,), generator=generator).tolist()):
        texts[row, position] = end
        texts[row, position + 1 :] = 0
    return texts


def random_batches(
    batch: int = 8,
    downstream_batch: int = 6,
    class_counts: tuple[int, ...] = (5,),
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
) -> tuple[Upstream, Tensor, Downstream]:
    """Make an upstream batch, its weights [B] of sum 1, and a downstream batch for `small_clip`."""
    generator = torch.Generator().manual_seed(seed)
    side = SMALL_CONFIG["vision_cfg"]["image_size"]

    def images(rows: int) -> Tensor:
        pixels = torch.randn(rows, 3, side, side, generator=generator, dtype=torch.float64)
        return pixels.to(dtype)

    upstream = Upstream(images(batch), random_texts(batch, generator))
    weights = torch.randn(batch, generator=generator, dtype=torch.float64).softmax(0).to(dtype)
    classes = sum(class_counts)
    downstream = Downstream(
        images=images(downstream_batch),
        labels=torch.randint(0, classes, (downstream_batch,), generator=generator),
        class_counts=tuple(class_counts),
        prompts=random_texts(classes, generator),
        captions=random_texts(downstream_batch, generator),
    )
    return upstream, weights, downstream
