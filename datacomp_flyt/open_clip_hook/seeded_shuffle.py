"""Seeds the shuffle and the crops of the trainer's loader by (seed, epoch, rank, worker).

open_clip seeds its sample shuffle with process id and time, and the random state with which a
loader process crops images continues from epoch to epoch. So two runs see different batches, and a
resumed run does not see those of the uninterrupted one. Here both are seeded again in each epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import get_worker_info
from webdataset import PipelineStage
from webdataset.filters import _shuffle

from datacomp_flyt.tars.samples import Sample


class SeededShuffle(PipelineStage):  # type: ignore[misc]
    """A seeded replacement of `webdataset.shuffle` in the trainer's pipeline.

    Attributes:
        epoch: the trainer's shared epoch, set once the trainer has made one.
    """

    def __init__(self, bufsize: int, initial: int, seed: int, rank: int) -> None:
        """
        Args:
            bufsize, initial: as in `webdataset.shuffle`.
            seed: any integer.
            rank: the rank of this process.
        """
        self.bufsize, self.initial = bufsize, initial
        self.seed, self.rank = seed, rank
        self.epoch: Any = None

    def run(self, src: Iterator[Sample]) -> Iterator[Sample]:
        """Return the samples of an epoch, shuffled."""
        worker = get_worker_info()
        epoch = 0 if self.epoch is None else self.epoch.get_value()
        seeds = _seeds(self.seed, epoch, self.rank, 0 if worker is None else worker.id)
        if worker is not None:  # without workers this is the training process: keep its state
            torch.manual_seed(seeds[1])
            random.seed(seeds[2])
            np.random.seed(seeds[3] % 2**32)  # noqa: NPY002  (the state that crops may read)
        shuffled: Iterator[Sample] = _shuffle(
            src, self.bufsize, self.initial, random.Random(seeds[0])
        )
        return shuffled


@contextlib.contextmanager
def seeded_shuffles(seed: int, rank: int) -> Iterator[list[SeededShuffle]]:
    """Replace `webdataset.shuffle` within the block; the list collects the shuffles it makes."""
    shuffles: list[SeededShuffle] = []

    def shuffle(bufsize: int, initial: int) -> SeededShuffle:
        shuffles.append(SeededShuffle(bufsize, initial, seed, rank))
        return shuffles[-1]

    stock = webdataset.shuffle
    webdataset.shuffle = shuffle
    try:
        yield shuffles
    finally:
        webdataset.shuffle = stock


def _seeds(*key: int) -> list[int]:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return [int.from_bytes(digest[8 * part : 8 * part + 8], "little") >> 1 for part in range(4)]
