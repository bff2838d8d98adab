"""Scorers that look at pictures: they stream tars as img2dataset writes them.

Rows are the samples that have a uid, in the order of the tar; a batch is so many of them, those
without a usable image or caption left out, so that batches depend on the tar and on --batch_size
alone and not on who scores it.
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

from datacomp_flyt.clip.inference import decode_threads, inference, refuse_decompression_bombs
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uids import decode_uids
from datacomp_flyt.scorers.base.flags import add_precision
from datacomp_flyt.scorers.base.scorer import Arrays, ScoredShard, Scorer
from datacomp_flyt.tars.pairs import Pair, read_pairs

BATCH_SIZE = 256
NOT_FINITE = "score is not finite"


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of everything that reads images."""
    add_precision(parser)
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, help="images at once (default: %(default)s)"
    )
    parser.add_argument(
        "--decode_threads",
        type=int,
        metavar="N",
        help="threads that decode images in each worker (default: 1 on a CPU; on GPUs the cores "
        "divided by the GPUs)",
    )


def check_image_arguments(batch_size: int, decode_threads: int | None) -> None:
    """Raise InputError where a number of `add_image_arguments` is not positive."""
    for flag, value in (("batch_size", batch_size), ("decode_threads", decode_threads)):
        if value is not None and value < 1:
            raise InputError(f"--{flag} {value} is less than 1: give 1 or more")


class ImageScorer(Scorer):
    """A scorer of tars of images.

    `load` of a subclass calls this one's and sets `transform` and `tokenize`.

    Attributes:
        device: where `score_batch` computes; set by `load`.
        transform: PIL image to a tensor [3, H, W].
        tokenize: strings to tokens [b, L].
    """

    reads_images: ClassVar[bool] = True
    uses_gpu: ClassVar[bool] = True
    device: torch.device
    transform: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]

    def __init__(
        self,
        batch_size: int = BATCH_SIZE,
        decode_threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            batch_size: images at once.
            decode_threads: in each worker; None for `decode_threads`'s choice.
            precision: `fp32` or `bf16`, see `inference`.

        Raises:
            InputError: a number that is not positive.
        """
        check_image_arguments(batch_size, decode_threads)
        self.batch_size, self.decode_threads = batch_size, decode_threads
        self.precision = precision

    @abstractmethod
    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores [b, columns] of images [b, 3, H, W] and tokens [b, L], all on the device.

        Runs in inference mode and, with precision bf16, under autocast: what should stay float32
        (sums of features, a head) has to leave autocast itself.
        """

    def load(self, device: str) -> None:
        """Remember the device."""
        self.device = torch.device(device)
        refuse_decompression_bombs()

    def score(self, shard: str, state: Arrays) -> ScoredShard:
        """The scores of one tar; NaN for samples without a usable image or caption.

        Raises:
            InputError: the tar is damaged, or none of its samples has a uid.
        """
        counts: Counter[str] = Counter()
        uids: list[str] = []
        parts = [np.empty((0, len(self.columns)), np.float32)]
        threads = decode_threads(self.decode_threads, self.device)
        pairs = read_pairs(shard, self.transform, self.batch_size, threads, counts)
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
            found = scores.float().cpu().numpy()
        finite = np.isfinite(found)
        if not finite.all():
            counts[NOT_FINITE] += int((~finite.all(1)).sum())
        values[usable] = np.where(finite, found, np.nan)
        return values
