"""DFN: the CLIP score of a model that was trained to filter (Fang et al., 2023).

The score is the cosine of the features of an image and its caption. FLYT uses two such models: one
trained on CC12M (`DFN-Base`), and the same fine-tuned on ImageNet, COCO and Flickr30k (`DFN-FT`;
FLYT, appendix B.1). docs/dfn.md describes how to train them.
"""

from __future__ import annotations

import argparse

from torch import Tensor

from datacomp_flyt.clip.encoder import ClipEncoder, LoadedEncoder
from datacomp_flyt.clip.flags import BATCH_SIZE, add_image_arguments
from datacomp_flyt.scorers.base.image_scorer import ImageScorer

MODEL = "ViT-B-32"
"""The configuration with GELU in which FLYT trained its models from OpenAI's weights."""

COLUMN = "DFN-FT"


class Dfn(ImageScorer):
    """Cosine of unit image and text features of any CLIP model of open_clip."""

    _encoder: LoadedEncoder

    def __init__(
        self,
        checkpoint: str,
        *,
        model: str = MODEL,
        column: str | None = None,
        batch_size: int = BATCH_SIZE,
        decode_threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            checkpoint: a file with weights, or a weights tag of open_clip.
            model: a model of open_clip, or a JSON file with its configuration.
            column: the name of the score; None for `DFN-FT`.
            batch_size, decode_threads, precision: see `ImageScorer`.

        Raises:
            InputError: the model or the weights do not exist, or they do not belong together.
        """
        super().__init__(batch_size=batch_size, decode_threads=decode_threads, precision=precision)
        self.columns = (column or COLUMN,)
        self._source = ClipEncoder(model, checkpoint)
        _, source = self._source.check()
        self.settings = {"precision": self.precision, **source}

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add `--model`, `--checkpoint` and the flags of all image scorers."""
        parser.add_argument(
            "--model",
            default=MODEL,
            help="model of open_clip, or a JSON file with its configuration (default: %(default)s, "
            "which computes with GELU as FLYT's models do)",
        )
        parser.add_argument(
            "--checkpoint",
            default="",
            metavar="FILE",
            help="DFN-FT.pt or DFN-Base.pt; a checkpoint of open_clip's trainer; or one of "
            "open_clip's weights tags",
        )
        add_image_arguments(parser)

    def load(self, device: str) -> None:
        """Load the model to `device`."""
        super().load(device)
        self._encoder = self._source.load(device)
        self.transform, self.tokenize = self._encoder.transform, self._encoder.tokenize

    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines [b, 1]."""
        image, text = self._encoder.features(images, texts)
        return (image * text).sum(1, keepdim=True)
