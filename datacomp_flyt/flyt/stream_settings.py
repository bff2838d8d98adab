"""What upstream and downstream data have in common: batch, streams, randomness, images."""

from __future__ import annotations

import random
from dataclasses import dataclass

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.examples import Transform
from datacomp_flyt.flyt.streams import stream_random

SHUFFLE_BUFFER = (5000, 1000)
"""Examples that the buffer of a stream holds, and how many before the first leaves it."""

CLIP_LOSS_SHUFFLE_BUFFER = (50_000, 10_000)
"""The same for downstream data where the downstream loss is the CLIP loss (FLYT, C.9)."""


@dataclass(frozen=True)
class StreamSettings:
    """How batches are drawn.

    Attributes:
        transform: for images.
        batch_size: global, B.
        num_streams: S; divides B.
        seed, epoch: decide all randomness, together with the number of a stream.
        rank, world_size: this process and how many there are; they divide S.
        num_workers: worker processes of each process, 0 for none.
        shuffle_buffer: capacity of each stream's buffer and its initial fill.
        max_bad_share: share of shards that may be unreadable.
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
        """Rows of a batch that come from one stream."""
        return self.batch_size // self.num_streams

    def check(self, name: str) -> None:
        """Raise InputError unless the streams divide the batch."""
        if self.batch_size < 1 or self.batch_size % self.num_streams:
            raise InputError(
                f"{name}: a batch of {self.batch_size} cannot be taken from {self.num_streams} "
                "streams in equal parts: give a multiple of --num_streams"
            )

    def random(self, purpose: str, stream: int) -> random.Random:
        """Random numbers of a stream for a purpose."""
        return stream_random(purpose, self.seed, self.epoch, stream)
