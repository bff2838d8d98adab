"""Scorers of images, which stream tars as img2dataset writes them.

The rows of a tar are its samples with a uid, in the tar's order. Every `batch_size` of them are one
batch, from which samples without a usable image or caption are left out, so batches depend on the
tar and on `--batch_size` alone.
"""

from __future__ import annotations

import argparse
import contextlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datacomp_flyt.clip.flags import (
    BATCH_SIZE,
    IMAGE_FLAGS,
    add_image_arguments,
    check_image_arguments,
)
from datacomp_flyt.clip.inference import decode_threads, inference, refuse_decompression_bombs
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uids import decode_uids
from datacomp_flyt.scorers.base.scorer import (
    COMMON_FLAGS,
    Arrays,
    ScoredShard,
    Scorer,
    option_parameters,
)
from datacomp_flyt.tars.pairs import Pair, read_pairs

NOT_FINITE = "score is not finite"


class ImageScorer(Scorer):
    """A scorer of tars of images.

    `load` of a subclass calls this one and sets `transform` and `tokenize`; its `score_batch`
    returns the scores of a batch.

    Attributes:
        precision: `fp32` or `bf16`.
        device: the device on which `score_batch` computes; set by `load`.
        transform: maps a PIL image to a tensor [3, H, W].
        tokenize: maps strings to tokens [b, L].
    """

    reads_images: ClassVar[bool] = True
    uses_gpu: ClassVar[bool] = True
    _shared_flags: ClassVar[tuple[str, ...]] = (*COMMON_FLAGS, *IMAGE_FLAGS)
    device: torch.device
    transform: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]

    def __init__(
        self,
        *,
        batch_size: int = BATCH_SIZE,
        decode_threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            batch_size: images in a batch.
            decode_threads: decoding threads in each worker; None for the choice of
                `inference.decode_threads`.
            precision: `fp32` or `bf16`, see `inference`.

        Raises:
            InputError: a number is not positive.
        """
        check_image_arguments(batch_size, decode_threads)
        # not public, since they are no settings that decide scores
        self._batch_size, self._decode_threads = batch_size, decode_threads
        self.precision = precision

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags of all scorers of images that the constructor takes, and its own."""
        add_image_arguments(parser, [f for f in IMAGE_FLAGS if f in option_parameters(cls)])
        super().add_arguments(parser)

    @abstractmethod
    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return scores [b, columns] of images [b, 3, H, W] and tokens [b, L], on the device.

        It is called in inference mode and, with precision bf16, under autocast: code that has to
        stay in float32 (sums of features, a head) must disable autocast itself.
        """

    def load(self, device: str) -> None:
        """Set the device."""
        self.device = torch.device(device)
        refuse_decompression_bombs()

    def score(self, shard: str, state: Arrays) -> ScoredShard:
        """Score one tar; samples without a usable image or caption get NaN.

        Raises:
            InputError: the tar is damaged, or none of its samples has a uid.
        """
        counts: Counter[str] = Counter()
        uids: list[str] = []
        parts = [np.empty((0, len(self.columns)), np.float32)]
        threads = decode_threads(self._decode_threads, self.device)
        pairs = read_pairs(shard, self.transform, self._batch_size, threads, counts)
        with contextlib.closing(pairs):
            for batch in pairs:
                uids += [pair.uid for pair in batch]
                parts.append(self._score(batch, counts))
        return ScoredShard(decode_uids(pa.array(uids, pa.string())), np.concatenate(parts), counts)

    def _score(self, batch: list[Pair[Tensor]], counts: Counter[str]) -> NDArray[np.float32]:
        values = np.full((len(batch), len(self.columns)), np.nan, np.float32)
        usable = [row for row, pair in enumerate(batch) if pair.image is not None]
        if not usable:
            return values
        images = torch.stack([pair.image for pair in batch if pair.image is not None])
        texts = self.tokenize([batch[row].text for row in usable])
        with inference(self.device, self.precision):
            scores = self.score_batch(images.to(self.device), texts.to(self.device))
            computed = scores.float().cpu().numpy()
        if computed.shape != (shape := (len(usable), len(self.columns))):
            raise InputError(
                f"score_batch of {type(self).__name__} returned scores of shape "
                f"{list(computed.shape)}, wanted {list(shape)}: return one for each row and column"
            )
        finite = np.isfinite(computed)
        if not finite.all():
            counts[NOT_FINITE] += int((~finite.all(1)).sum())
        values[usable] = np.where(finite, computed, np.nan)
        return values
