"""HYPE's hyperbolic CLIP and its reference set, in the files that its authors released.

The architecture is open_clip's CLIP with a LayerNorm of its own epsilon, outputs that are scaled
instead of normalised, and a learned curvature (github.com/naver-ai/hype, model.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from datacomp_flyt.clip.models import read_state_dict
from datacomp_flyt.errors import InputError

HEAD_WIDTH = 64
SCALARS = ("alpha_img", "alpha_txt", "curvature")
WHERE = "the link in the README of github.com/naver-ai/hype"

State = dict[str, Tensor]


class HypeModel(nn.Module):
    """Encoders of images and texts into the tangent space of the hyperboloid.

    Attributes:
        image_size: the side of an image, in pixels.
        context_length: the number of tokens of a text.
        vocab_size: the number of different tokens.
        width: the width of the outputs.
    """

    def __init__(self, state: State, what: str) -> None:
        """Build the model of tensors in the released layout, whose shapes set its sizes.

        Args:
            state: the tensors by name.
            what: the flag and file of the tensors, for messages.

        Raises:
            InputError: a tensor is missing, unknown, of a wrong shape, or not finite.
        """
        super().__init__()
        # open_clip's older releases store this constant
        state = {name: tensor for name, tensor in state.items() if name != "attn_mask"}
        config = _config(state, what)
        with torch.random.fork_rng(devices=[]):  # PyTorch 1.13 builds no model without weights
            clip = CLIP(**config)
        for name in SCALARS:
            clip.register_parameter(name, nn.Parameter(torch.zeros([])))
        _check(state, clip.state_dict(), what)
        known = {name: state[name].float() for name in clip.state_dict()}
        clip.load_state_dict(known)
        length = config["text_cfg"]["context_length"]
        clip.attn_mask = torch.full((length, length), -torch.inf).triu_(1)  # not in the state
        for module in clip.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = torch.finfo(torch.float32).eps
        self.clip = clip
        self.image_size = int(config["vision_cfg"]["image_size"])
        self.context_length = int(length)
        self.vocab_size = int(config["text_cfg"]["vocab_size"])
        self.width = int(config["embed_dim"])
        self.requires_grad_(False).eval()

    @property
    def c(self) -> float:
        """Minus the curvature."""
        return float(self.clip.curvature.exp())

    def encode_image(self, images: Tensor) -> Tensor:
        """Tangent vectors [b, width] of images [b, 3, image_size, image_size]."""
        vectors: Tensor = self.clip.encode_image(images).float() * self.clip.alpha_img.exp()
        return vectors

    def encode_text(self, texts: Tensor) -> Tensor:
        """Tangent vectors [b, width] of tokens [b, context_length]."""
        vectors: Tensor = self.clip.encode_text(texts).float() * self.clip.alpha_txt.exp()
        return vectors


def load_hype_model(path: Path, flag: str) -> HypeModel:
    """Load a model in the released layout, to the CPU and in float32.

    Args:
        path: `ckpt.pt` of the authors, or the same tensors in a .safetensors file.
        flag: the flag that names the file, without `--`, for messages.

    Raises:
        InputError: the file cannot be read or holds another model.
    """
    what = f"--{flag} {path}"
    return HypeModel(read_state_dict(path, what), what)


def load_reference(path: Path, flag: str, width: int) -> tuple[Tensor, Tensor]:
    """Load a reference set: tangent vectors of images [Ri, width] and texts [Rt, width], float32.

    Args:
        path: `reference.pt` of the authors, {"img": ..., "txt": ...}, or such a .safetensors file.
        flag: the flag that names the file, without `--`, for messages.
        width: the width of the model's outputs.

    Raises:
        InputError: the file cannot be read, or its vectors are of another width, none, or not
            finite.
    """
    what = f"--{flag} {path}"
    content = read_state_dict(path, what)
    vectors = []
    for name in ("img", "txt"):
        if name not in content:
            raise InputError(
                f"{what} has no {name!r}: give a file of two tensors, 'img' and 'txt', such as "
                f"reference.pt of {WHERE}"
            )
        shape = list(content[name].shape)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            raise InputError(
                f"{what} has {name!r} of shape {shape} and the model puts out {width} numbers: "
                "give the reference set that was made with this model"
            )
        if not content[name].isfinite().all():
            raise InputError(f"{what} has values in {name!r} that are not finite: make it again")
        vectors.append(content[name].float())
    return vectors[0], vectors[1]


def _config(state: State, what: str) -> dict[str, Any]:
    """Return the arguments of open_clip's CLIP."""
    width, _, patch_size, _ = _shape(state, "visual.conv1.weight", 4, what)
    patches = _shape(state, "visual.positional_embedding", 2, what)[0] - 1
    vocab_size, text_width = _shape(state, "token_embedding.weight", 2, what)
    for name, value in (("images", width), ("texts", text_width)):
        if value % HEAD_WIDTH or value == 0:
            raise InputError(
                f"{what} is not a HYPE model: its width for {name} is {value}, which is no "
                f"multiple of {HEAD_WIDTH}; take ckpt.pt of {WHERE}"
            )
    return {
        "embed_dim": _shape(state, "visual.proj", 2, what)[1],
        "vision_cfg": {
            # the check of shapes refuses a number of patches that is no square
            "image_size": round(max(patches, 1) ** 0.5) * patch_size,
            "patch_size": patch_size,
            "width": width,
            "layers": _layers(state, "visual.transformer"),
            "head_width": HEAD_WIDTH,
        },
        "text_cfg": {
            "context_length": _shape(state, "positional_embedding", 2, what)[0],
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": _layers(state, "transformer"),
        },
    }


def _shape(state: State, name: str, dimensions: int, what: str) -> tuple[int, ...]:
    shape = tuple(state[name].shape) if name in state else None
    if shape is None or len(shape) != dimensions:
        fault = "missing" if shape is None else f"of shape {list(shape)}"
        raise InputError(f"{what} is not a HYPE model: {name} is {fault}; take ckpt.pt of {WHERE}")
    return shape


def _layers(state: State, tower: str) -> int:
    pattern = re.compile(re.escape(tower) + r"\.resblocks\.(\d+)\.")
    # at least one, since a checkpoint without the tower must be refused
    return max(len({match[1] for match in map(pattern.match, state) if match}), 1)


def _check(state: State, wanted: State, what: str) -> None:
    wrong = [
        f"{name} is {list(state[name].shape) if name in state else 'missing'}, wanted "
        f"{list(tensor.shape)}"
        for name, tensor in wanted.items()  # the public loader ignores others
        if name not in state or state[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(
            f"{what} is not a HYPE model: {wrong[0]} ({len(wrong)} such tensors); take ckpt.pt of "
            f"{WHERE}"
        )
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{what} is damaged: {name} is not finite; take ckpt.pt of {WHERE} again"
            )
