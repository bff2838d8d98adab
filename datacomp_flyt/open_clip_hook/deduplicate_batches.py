"""No pair twice in a batch: repeats change places with examples of the next batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's batch: images [b, 3, H, W], tokens [b, L], uids [b]."""

    images: Tensor
    texts: Tensor
    uids: NDArray[np.void]

    def exchange(self, row: int, other: Batch, other_row: int) -> None:
        """Let a row and one of another batch change places."""
        for mine, theirs in ((self.images, other.images), (self.texts, other.texts)):
            kept = mine[row].clone()
            mine[row] = theirs[other_row]
            theirs[other_row] = kept
        uid = self.uids[row].copy()
        self.uids[row] = other.uids[other_row]
        other.uids[other_row] = uid


def distinct_batches(batches: Iterator[Batch], group: int, moved: list[int]) -> Iterator[Batch]:
    """The same batches, with repeats moved from each to the next where that one has others.

    Every example comes out as often as it went in. A repeat remains where no example of the next
    batch could take its place; the loss gives it weight 0.

    Args:
        batches: of one epoch.
        group: batches that make a step together (`--accum-freq`): no pair twice in all of them.
        moved: the number of moves is added to its only entry.
    """
    current = next(batches, None)
    number, seen = 0, set[bytes]()
    while current is not None:
        following = next(batches, None)
        if number % group == 0:
            seen = set()
        moved[0] += _make_distinct(current, following, seen)
        yield current
        current, number = following, number + 1


def _make_distinct(batch: Batch, following: Batch | None, seen: set[bytes]) -> int:
    """Exchange what is in `seen` already, and add the rest to it; the number of exchanges."""
    repeats = []
    for row, uid in enumerate(map(bytes, batch.uids)):
        if uid in seen:
            repeats.append(row)
        seen.add(uid)
    moves = 0
    if repeats and following is not None:
        others = [
            (row, uid) for row, uid in enumerate(map(bytes, following.uids)) if uid not in seen
        ]
        for other_row, uid in others:
            if moves == len(repeats):
                break
            if uid not in seen:
                batch.exchange(repeats[moves], following, other_row)
                seen.add(uid)
                moves += 1
    return moves
