"""Chance in the trainer's loader processes, decided by (seed, epoch, rank, worker).

open_clip seeds its sample shuffle with process id and time, and lets the random state of a loader
process, which crops training pictures, run on from epoch to epoch. So no two runs see the same
batches, and no resumed run those that it would have seen. Here both begin anew in each epoch.
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
    """What stands in the trainer's pipeline in place of `webdataset.shuffle`."""

    def __init__(self, bufsize: int, initial: int, seed: int, rank: int) -> None:
        """
        Args:
            bufsize, initial: of `webdataset.shuffle`.
            seed: any integer.
            rank: of this process among those that train.
        """
        self.bufsize, self.initial = bufsize, initial
        self.seed, self.rank = seed, rank
        self.epoch: Any = None
        """The trainer's shared epoch, once it has made one."""

    def run(self, src: Iterator[Sample]) -> Iterator[Sample]:
        """The samples of an epoch, shuffled."""
        worker = get_worker_info()
        epoch = 0 if self.epoch is None else self.epoch.get_value()
        seeds = _seeds(self.seed, epoch, self.rank, 0 if worker is None else worker.id)
        if worker is not None:  # without, this is the process that trains, whose state is its own
            torch.manual_seed(seeds[1])
            random.seed(seeds[2])
            np.random.seed(seeds[3] % 2**32)  # noqa: NPY002  (the state that crops may read)
        shuffled: Iterator[Sample] = _shuffle(
            src, self.bufsize, self.initial, random.Random(seeds[0])
        )
        return shuffled


@contextlib.contextmanager
def seeded_shuffles(seed: int, rank: int) -> Iterator[list[SeededShuffle]]:
    """In the block `webdataset.shuffle` makes seeded ones, which the list gets."""
    made: list[SeededShuffle] = []

    def shuffle(bufsize: int, initial: int) -> SeededShuffle:
        made.append(SeededShuffle(bufsize, initial, seed, rank))
        return made[-1]

    stock = webdataset.shuffle
    webdataset.shuffle = shuffle
    try:
        yield made
    finally:
        webdataset.shuffle = stock


def _seeds(*named: int) -> list[int]:
    digest = hashlib.sha256(repr(named).encode()).digest()
    return [int.from_bytes(digest[8 * part : 8 * part + 8], "little") >> 1 for part in range(4)]
