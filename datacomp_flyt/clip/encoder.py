"""CLIP models that compute unit features: named in the driver, loaded in the workers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.streams import say


@dataclass(frozen=True)
class LoadedEncoder:
    """A CLIP model on its device, in evaluation mode.

    Attributes:
        model: the model, without gradients.
        transform: open_clip's evaluation transform of a PIL image.
        tokenize: maps strings to tokens [n, L].
    """

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]

    def features(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit features, float32 [b, d] each, of images [b, 3, H, W] and tokens [b, L]."""
        model: Any = self.model
        return unit(model.encode_image(images)), unit(model.encode_text(texts))

    @property
    def width(self) -> int:
        """The width d of a feature."""
        model: Any = self.model
        return int(model.encode_text(self.tokenize([""]).to(model.logit_scale.device)).shape[1])


@dataclass(frozen=True)
class ClipEncoder:
    """The source of a CLIP model.

    Attributes:
        model: a model of open_clip, or a JSON file with a configuration.
        checkpoint: a file with weights, or a weights tag of open_clip.
        flags: the flags of the two, for messages.
    """

    model: str
    checkpoint: str
    flags: tuple[str, str] = ("--model", "--checkpoint")

    def load(self, device: str) -> LoadedEncoder:
        """Load the model to a device.

        Raises:
            InputError: see `load_clip_model`.
        """
        with warnings.catch_warnings():
            # `check` notes a tag in another configuration once
            warnings.filterwarnings("ignore", "QuickGELU mismatch")
            clip = load_clip_model(self.model, self.checkpoint, self.flags, plain=False)
        model = clip.model.eval().requires_grad_(False).to(device)
        return LoadedEncoder(model, clip.eval_transform, clip.tokenize)

    def check(self) -> tuple[LoadedEncoder, dict[str, Any]]:
        """Load the model to the CPU; return it and, as JSON, everything that decides its features.

        A note on stderr says if weights trained with QuickGELU, such as OpenAI's, are used in a
        configuration with GELU, as in the paper, or the other way round.

        Raises:
            InputError: see `load_clip_model`.
        """
        if not self.checkpoint:
            raise InputError(
                f"{self.flags[1]} is missing: give a checkpoint file, or a weights tag of open_clip"
            )
        loaded = self.load("cpu")
        activation = activation_of(loaded.model)
        is_file = Path(self.checkpoint).is_file() and not self._is_tag()
        if self._is_tag() and activation != (trained := self._trained_with()):
            say(
                f"note: {self.flags[1]} {self.checkpoint} was trained with {trained} and "
                f"{self.model} computes with {activation}, so its features are not those of the "
                "published model"
                + (f"; {self.model}-quickgelu makes those" if trained == "QuickGELU" else ""),
                error=True,
            )
        return loaded, {
            "model": file_digest(self.model) if self.model.endswith(".json") else self.model,
            "checkpoint": file_digest(self.checkpoint) if is_file else self.checkpoint,
            "activation": activation,
        }

    def _is_tag(self) -> bool:
        return self.checkpoint in open_clip.list_pretrained_tags_by_model(self.model)

    def _trained_with(self) -> str:
        """Return the activation of a tag's weights; releases without it had only OpenAI's."""
        config = open_clip.pretrained.get_pretrained_cfg(self.model, self.checkpoint)
        quick = config.get("quick_gelu", self.checkpoint == "openai")
        return "QuickGELU" if quick else "GELU"


def activation_of(model: nn.Module) -> str:
    """Return the activation that a CLIP model uses: `QuickGELU`, x σ(1.702 x), or `GELU`."""
    quick = any(type(module).__name__ == "QuickGELU" for module in model.modules())
    return "QuickGELU" if quick else "GELU"


def unit(features: Tensor) -> Tensor:
    """Normalize rows [b, d] to unit norm, float32."""
    return F.normalize(features.float(), dim=-1)
