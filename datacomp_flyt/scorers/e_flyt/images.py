"""E-FLYT scores by heads whose features are made from images, such as the published `flyt.pt`.

Its feature extractor is OpenAI's ViT-B/32 in open_clip's configuration with GELU; the pool's npz
were made with QuickGELU and do not fit it. `flyt.pt` holds the weights of both. FLYT trained the
head on augmented images and does not describe scoring; here images get the evaluation transform.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datacomp_flyt.clip.encoder import ClipEncoder, LoadedEncoder
from datacomp_flyt.clip.flags import BATCH_SIZE, add_image_arguments
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.checkpoint_file import read_checkpoint
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.scorers.base.image_scorer import ImageScorer
from datacomp_flyt.scorers.base.scorer import Scorer
from datacomp_flyt.scorers.dfn import MODEL
from datacomp_flyt.scorers.e_flyt.e_flyt import COLUMN, EFlyt
from datacomp_flyt.scorers.e_flyt.glu_head import GluHead
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head


class EFlytImages(ImageScorer):
    """The gated head over [unit image feature, unit text feature] (FLYT, 3.4 and C.7)."""

    _encoder: LoadedEncoder
    _layers: list[tuple[Tensor, ...]]

    def __init__(
        self,
        scoring_model: str,
        *,
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
            model: the model of open_clip that makes the features.
            checkpoint: its weights; None for those in `scoring_model`.
            column: the name of the score; None for `FLYT`.
            batch_size, decode_threads, precision: see `ImageScorer`.

        Raises:
            InputError: the head cannot be read or was trained on npz arrays, or the weights of its
                feature extractor are missing or belong to another model.
        """
        super().__init__(batch_size=batch_size, decode_threads=decode_threads, precision=precision)
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
        """Add `--scoring_model`, `--model`, `--checkpoint` and the flags of all image scorers."""
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
        """Load the feature extractor and the head to `device`."""
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
        """Height and width of the images that the loaded feature extractor takes."""
        model: Any = self._encoder.model
        size = model.visual.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return scores [b, 1]; the head computes in float32 at any precision."""
        values = torch.cat(self._encoder.features(images, texts), 1)
        with torch.autocast(values.device.type, enabled=False):
            for w1, b1, w3, b3, w2, b2 in self._layers:
                gated = F.silu(F.linear(values, w1, b1)) * F.linear(values, w3, b3)
                values = F.linear(gated, w2, b2)
        return values


def make_e_flyt(
    scoring_model: str | None,
    *,
    shards_dir: str | None = None,
    model: str = MODEL,
    checkpoint: str | None = None,
    column: str | None = None,
    batch_size: int = BATCH_SIZE,
    decode_threads: int | None = None,
    precision: str = "fp32",
) -> Scorer:
    """Make the scorer of a head: from images if its features are and there are tars, else from npz.

    Args:
        shards_dir: tars, if there are any; for the other arguments see `EFlytImages`.

    Raises:
        InputError: see `EFlyt` and `EFlytImages`.
    """
    if scoring_model is None:
        raise InputError("--scorer e_flyt wants --scoring_model: a file of E-FLYT training")
    if shards_dir is None or load_glu_head(scoring_model).arrays is not None:
        return EFlyt(scoring_model, column=column)
    return EFlytImages(
        scoring_model, model=model, checkpoint=checkpoint, column=column, batch_size=batch_size,
        decode_threads=decode_threads, precision=precision,
    )  # fmt: skip


def _open(source: str, model: str, checkpoint: str | None) -> tuple[GluHead, ClipEncoder]:
    """Read the head of a file, and find the weights of its feature extractor."""
    head = load_glu_head(source)
    if head.arrays is not None:
        raise InputError(
            f"--scoring_model {source} was trained on the npz arrays {', '.join(head.arrays)}: "
            "score with it from those, by --scorer e_flyt"
        )
    if checkpoint is not None:
        return head, ClipEncoder(model, checkpoint)
    extractor = read_checkpoint(Path(source), source, lambda name: name == "clip_model.logit_scale")
    if not extractor.tensors:
        raise InputError(
            f"--scoring_model {source} is a head without the model that makes its features: name "
            "that one's weights with --checkpoint"
        )
    return head, ClipEncoder(model, source, ("--model", "--scoring_model"))
