"""Removes repeats from batches: a repeat is exchanged with an example of the next batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A batch of one rank.

    Attributes:
        images: [b, 3, H, W].
        texts: tokens [b, L].
        uids: `u8,u8` array [b].
    """

    images: Tensor
    texts: Tensor
    uids: NDArray[np.void]

    def exchange(self, row: int, other: Batch, other_row: int) -> None:
        """Exchange a row with a row of another batch, in place."""
        for mine, theirs in ((self.images, other.images), (self.texts, other.texts)):
            kept = mine[row].clone()
            mine[row] = theirs[other_row]
            theirs[other_row] = kept
        uid = self.uids[row].copy()
        self.uids[row] = other.uids[other_row]
        other.uids[other_row] = uid


def deduplicate_batches(
    batches: Iterator[Batch], accum_freq: int, exchange_count: list[int]
) -> Iterator[Batch]:
    """Yield the batches, with repeats exchanged for examples of the following batch.

    A repeat remains if no example of the next batch can replace it; the loss gives it weight 0.
    Every example comes out as often as it went in (an exchange only moves it to a later batch).

    Args:
        batches: the batches of an epoch.
        accum_freq: number of batches in a step (`--accum-freq`); repeats are removed within the
            batches of one step.
        exchange_count: a list of one number, which is increased by the number of exchanges.
    """
    current = next(batches, None)
    batch_index, seen = 0, set[bytes]()
    while current is not None:
        following = next(batches, None)
        if batch_index % accum_freq == 0:
            seen = set()
        exchange_count[0] += _exchange_repeats(current, following, seen)
        yield current
        current, batch_index = following, batch_index + 1


def _exchange_repeats(batch: Batch, following: Batch | None, seen: set[bytes]) -> int:
    """Exchange the rows whose uid was seen before in this step, and add the others to `seen`.

    Returns:
        The number of exchanges.
    """
    repeats = []
    for row, uid in enumerate(map(bytes, batch.uids)):
        if uid in seen:
            repeats.append(row)
        seen.add(uid)
    num_exchanges = 0
    if repeats and following is not None:
        candidates = [
            (row, uid) for row, uid in enumerate(map(bytes, following.uids)) if uid not in seen
        ]
        for other_row, uid in candidates:
            if num_exchanges == len(repeats):
                break
            if uid not in seen:
                batch.exchange(repeats[num_exchanges], following, other_row)
                seen.add(uid)
                num_exchanges += 1
    return num_exchanges
