"""Settings shared by upstream and downstream data: batch, streams, randomness, images."""

from __future__ import annotations

import random
from dataclasses import dataclass

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.examples import Transform
from datacomp_flyt.flyt.streams import stream_random

SHUFFLE_BUFFER = (5000, 1000)
"""Capacity of each stream's shuffle buffer, and its fill before the first example is drawn."""


@dataclass(frozen=True)
class StreamSettings:
    """Settings by which batches are drawn.

    Attributes:
        transform: transform of the images.
        batch_size: B, of all processes together.
        num_streams: S, a divisor of B.
        seed, epoch: determine all randomness, together with the index of a stream.
        rank, world_size: rank of this process, and number of processes, a divisor of S.
        num_workers: number of worker processes of each process, 0 for none.
        shuffle_buffer: capacity of each stream's shuffle buffer, and its initial fill.
        max_bad_share: greatest share of shards that may be unreadable.
    """

    transform: Transform
    batch_size: int
    num_streams: int
    seed: int
    epoch: int
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    shuffle_buffer: tuple[int, int] = SHUFFLE_BUFFER
    max_bad_share: float = 0.1

    @property
    def block_size(self) -> int:
        """Number of rows of a batch that come from one stream."""
        return self.batch_size // self.num_streams

    def check(self, name: str) -> None:
        """Raise InputError unless the streams divide the batch."""
        if self.batch_size < 1 or self.batch_size % self.num_streams:
            raise InputError(
                f"{name}: a batch of {self.batch_size} cannot be taken from {self.num_streams} "
                "streams in equal parts: give a multiple of --num_streams"
            )

    def random(self, purpose: str, stream: int) -> random.Random:
        """Return the random generator of a stream for a purpose."""
        return stream_random(purpose, self.seed, self.epoch, stream)
