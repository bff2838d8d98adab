"""HYPE's scores: specificity of an image and a text, and their distance, in hyperbolic space.

Kim et al., "HYPE: Hyperbolic Entailment Filtering for Underspecified Images and Texts", ECCV 2024
(arXiv:2404.17507). With d the Lorentz distance, ent(x, y) the entailment of `hyperbolic`, and a
reference set of image and text embeddings,

    hype_lorentzian_distance(I, T) = -d(I, T)
    hype_image_specificity(I) = mean of ent(t, I) over the reference texts t
    hype_text_specificity(T) = mean of ent(T, j) over the reference images j

in radians; larger is better for all three. The baseline "HYPE" of the FLYT paper is their plain
sum.

The authors' repository (github.com/naver-ai/hype), whose README links to the weights and the
reference set and names no other licence for them, is under CC BY-NC 4.0, Copyright 2024-present
NAVER Cloud Corp.: no commercial use, and credit where they are shared. Its NOTICE says the same of
MERU, which it builds on. This package holds none of their code, weights or vectors.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from datacomp_flyt.clip.flags import BATCH_SIZE, add_image_arguments
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.scorers.base.image_scorer import ImageScorer
from datacomp_flyt.scorers.hype.hyperbolic import (
    exponential_map,
    lorentz_distance,
    mean_over_cones,
    mean_over_points,
)
from datacomp_flyt.scorers.hype.model import WHERE, HypeModel, load_hype_model, load_reference


class Hype(ImageScorer):
    """HYPE's three scores of the pairs of a pool, from images and texts.

    The encoders run in the chosen precision, the geometry in float64: it costs next to nothing
    beside them, and float32 loses digits where angles cancel.
    """

    columns = ("hype_lorentzian_distance", "hype_image_specificity", "hype_text_specificity")

    def __init__(
        self,
        checkpoint: Path | None,
        reference: Path | None,
        *,
        batch_size: int = BATCH_SIZE,
        decode_threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            checkpoint: weights in the released layout.
            reference: the reference set, see `load_reference`.
            batch_size, decode_threads, precision: see `ImageScorer`.

        Raises:
            InputError: an argument or a file is wrong.
        """
        super().__init__(batch_size=batch_size, decode_threads=decode_threads, precision=precision)
        if checkpoint is None:
            raise InputError(f"--checkpoint is missing: give ckpt.pt of {WHERE}")
        if reference is None:
            raise InputError(f"--reference is missing: give reference.pt of {WHERE}")
        self.checkpoint, self.reference = checkpoint, reference
        self._read()
        self.settings = {
            "checkpoint": file_digest(self.checkpoint),
            "reference": file_digest(self.reference),
            "precision": self.precision,
        }

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_image_arguments(parser)
        parser.add_argument(
            "--checkpoint", type=Path, metavar="FILE", help="weights: ckpt.pt of HYPE's authors"
        )
        parser.add_argument(
            "--reference", type=Path, metavar="FILE", help="reference.pt of HYPE's authors"
        )

    def load(self, device: str) -> None:
        super().load(device)
        model, images, texts = self._read()
        self.model = model.to(device)
        self.reference_images = exponential_map(images.to(device).double(), model.c)
        self.reference_texts = exponential_map(texts.to(device).double(), model.c)
        self.transform = open_clip.image_transform(model.image_size, is_train=False)
        self.tokenize = partial(open_clip.tokenize, context_length=model.context_length)

    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        # autocast leaves float64 as it is
        c = self.model.c
        image = exponential_map(self.model.encode_image(images).double(), c)
        text = exponential_map(self.model.encode_text(texts).double(), c)
        scores = (
            -lorentz_distance(image, text, c),
            mean_over_cones(self.reference_texts, image, c),
            mean_over_points(text, self.reference_images, c),
        )
        return torch.stack(scores, dim=1).float()

    def _read(self) -> tuple[HypeModel, Tensor, Tensor]:
        model = load_hype_model(self.checkpoint, "checkpoint")
        tokens = open_clip.SimpleTokenizer().vocab_size
        if model.vocab_size < tokens:
            raise InputError(
                f"--checkpoint {self.checkpoint} knows {model.vocab_size} tokens and CLIP's "
                f"tokenizer has {tokens}: take ckpt.pt of {WHERE}"
            )
        return model, *load_reference(self.reference, "reference", model.width)
