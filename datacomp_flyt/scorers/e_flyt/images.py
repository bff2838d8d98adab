"""E-FLYT scores of models whose features are made from images, as the published `flyt.pt`'s are.

Its feature extractor is OpenAI's ViT-B/32 in open_clip's configuration with GELU, so the pool's
npz, made with QuickGELU, do not serve it. The weights of both are in the one file. FLYT trained the
head on augmented images and says nothing of scoring; here images get the evaluation transform.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datacomp_flyt.clip.encoder import ClipEncoder, LoadedEncoder
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.checkpoint_file import read_checkpoint
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.scorers.base.image_scorer import BATCH_SIZE, ImageScorer, add_image_arguments
from datacomp_flyt.scorers.dfn import MODEL
from datacomp_flyt.scorers.e_flyt.glu_head import GluHead
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head

COLUMN = "FLYT"


class EFlytImages(ImageScorer):
    """The gated head over [unit image feature, unit text feature] (FLYT, section 3.3)."""

    _encoder: LoadedEncoder
    _layers: list[tuple[Tensor, ...]]

    def __init__(
        self,
        scoring_model: str,
        model: str = MODEL,
        checkpoint: str | None = None,
        column: str | None = None,
        batch_size: int = BATCH_SIZE,
        decode_threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            scoring_model: the published `flyt.pt`, or a head of ours trained on images' features.
            model: of open_clip, that makes the features.
            checkpoint: its weights; None for those in `scoring_model`.
            batch_size, decode_threads, precision: see `ImageScorer`.

        Raises:
            InputError: no such head, one that was trained on npz arrays, no weights for its
                features, or weights of another model.
        """
        super().__init__(batch_size, decode_threads, precision)
        self.columns = (column or COLUMN,)
        self._head, self._source = _open(scoring_model, model, checkpoint)
        encoder, source = self._source.check()
        if 2 * encoder.width != self._head.width:
            raise InputError(
                f"--scoring_model {scoring_model} takes {self._head.width} features and "
                f"--model {model} makes 2 x {encoder.width}: name the model that the head was "
                "trained on"
            )
        head = file_digest(scoring_model)
        self.settings = {"precision": self.precision, "head": head, **source}

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add --scoring_model, --model and --checkpoint, and those of all image scorers."""
        parser.add_argument(
            "--scoring_model",
            metavar="FILE",
            help="flyt.pt, or a .safetensors head that was trained on features made from images",
        )
        parser.add_argument(
            "--model",
            default=MODEL,
            help="model of open_clip that makes the features, or a JSON file with its "
            "configuration (default: %(default)s, which computes with GELU)",
        )
        parser.add_argument(
            "--checkpoint",
            metavar="FILE",
            help="its weights: a checkpoint, or one of open_clip's weights tags (default: what "
            "flyt.pt holds itself)",
        )
        add_image_arguments(parser)

    def load(self, device: str) -> None:
        """Extractor and head, to `device`."""
        super().load(device)
        self._encoder = self._source.load(device)
        self.transform, self.tokenize = self._encoder.transform, self._encoder.tokenize
        self._layers = [
            tuple(
                torch.from_numpy(part).to(device)
                for part in (layer.w1, layer.b1, layer.w3, layer.b3, layer.w2, layer.b2)
            )
            for layer in self._head.layers
        ]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of images that the loaded extractor takes."""
        model: Any = self._encoder.model
        size = model.visual.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [b, 1]; the head computes in float32 whatever the precision."""
        values = torch.cat(self._encoder.features(images, texts), 1)
        with torch.autocast(values.device.type, enabled=False):
            for w1, b1, w3, b3, w2, b2 in self._layers:
                gated = F.silu(F.linear(values, w1, b1)) * F.linear(values, w3, b3)
                values = F.linear(gated, w2, b2)
        return values


def _open(source: str | None, model: str, checkpoint: str | None) -> tuple[GluHead, ClipEncoder]:
    if source is None:
        raise InputError("--scoring_model is missing: give flyt.pt or a .safetensors head")
    head = load_glu_head(source)
    if head.arrays is not None:
        raise InputError(
            f"--scoring_model {source} was trained on the npz arrays {', '.join(head.arrays)}: "
            "score with it from those, by --scorer e_flyt"
        )
    if checkpoint is not None:
        return head, ClipEncoder(model, checkpoint)
    scale = read_checkpoint(Path(source), source, lambda name: name == "clip_model.logit_scale")
    if not scale.tensors:
        raise InputError(
            f"--scoring_model {source} is a head without the model that makes its features: name "
            "that one's weights with --checkpoint"
        )
    return head, ClipEncoder(model, source, ("--model", "--scoring_model"))
