"""Endless reading of tar shards that are drawn with replacement, with checks of their content."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from datacomp_flyt.errors import InputError
from datacomp_flyt.tars.nothing_usable import PAIR, MemberCounts, nothing_usable
from datacomp_flyt.tars.samples import Sample, Skip, UnreadableShard, read_tar

T = TypeVar("T")

Select = Callable[[Sample], T]
"""Extracts the parts of a sample without decoding its image; raises Skip to skip the sample."""

UNREADABLE_SHARD = "shard unreadable"

_MIN_OPENED = 20  # shards that are opened before the share of unreadable ones is checked
_WAY_OUT = "mend the tars, or give shards and features of the same pool"
_MAX_EMPTY = 200  # shards in a row without a usable example


class ShardReader(Generic[T]):
    """Iterates without end over the examples of shards that are drawn with replacement.

    Shards that cannot be read, and samples that `select` skips, are counted.

    Raises (while iterating):
        InputError: too many shards are unreadable, or the shards hold too few usable examples.
    """

    def __init__(
        self,
        shards: Sequence[tuple[str, Select[T]]],
        rng: random.Random,
        skipped: Counter[str],
        name: str,
        needed: int = 1,
        max_bad_share: float = 0.1,
        wanted: str = PAIR,
    ) -> None:
        """
        Args:
            shards: path or address of each tar, and the part of its samples to use.
            rng: the generator that draws shards.
            skipped: a counter of the samples that are left out, by reason.
            name: the name of the data in messages.
            needed: the number of usable examples that all shards together must hold.
            max_bad_share: the greatest share of unreadable shards.
            wanted: the members of an example, for messages.
        """
        self._shards, self._rng, self._skipped, self._name = shards, rng, skipped, name
        self._needed, self._max_bad_share, self._wanted = needed, max_bad_share, wanted
        self._usable: dict[int, int] = {}  # by shard, when it was last read
        self._bad: set[int] = set()
        self._enough = False
        self._empty = 0  # shards in a row without a usable example
        self._reasons: Counter[str] = Counter()
        self._seen = MemberCounts()

    def __iter__(self) -> Iterator[T]:
        while True:
            shard_index = self._rng.randrange(len(self._shards))
            usable, failure = 0, None
            try:
                for item in self._read(shard_index):
                    usable += 1
                    yield item
            except UnreadableShard as error:
                failure = f"{self._shards[shard_index][0]} ({error})"
            self._usable[shard_index] = usable
            if failure is None:
                self._bad.discard(shard_index)
            else:
                self._bad.add(shard_index)
                self._skip(UNREADABLE_SHARD)
                self._check_bad(failure)
            self._empty = 0 if usable else self._empty + 1
            self._check_usable()

    def _read(self, shard_index: int) -> Iterator[T]:
        url, select = self._shards[shard_index]
        with contextlib.closing(read_tar(url, self._seen)) as samples:
            for sample in samples:
                try:
                    item = select(sample)
                except Skip as skip:
                    self._skip(skip.reason)
                else:
                    yield item

    def _skip(self, reason: str) -> None:
        self._skipped[reason] += 1
        self._reasons[reason] += 1

    def _check_bad(self, last: str) -> None:
        """Raise InputError if significantly more shards are unreadable than allowed."""
        bad, opened, share = len(self._bad), len(self._usable), self._max_bad_share
        if opened < len(self._shards):
            if opened < _MIN_OPENED:
                return
            tolerance = 3 * math.sqrt(share * (1 - share) * opened)  # three standard deviations
        else:
            tolerance = 0.0
        if bad > share * opened + tolerance:
            raise InputError(
                f"{self._name}: {bad:,} of the {opened:,} shards opened so far cannot be read, the "
                f"last is {last}: download them again, or raise --max_bad_share above {share:g}"
            )

    def _check_usable(self) -> None:
        """Raise InputError if all shards together, or many in a row, hold too few examples."""
        num_shards = len(self._shards)
        if self._empty >= _MAX_EMPTY:
            raise self._nothing(
                f"the last {self._empty:,} shards read hold no example that can be used"
            )
        if self._enough:
            return
        held = sum(self._usable.values())
        self._enough = held >= self._needed
        if self._enough or len(self._usable) < num_shards:
            return
        if not held:
            raise self._nothing(f"no example of its {num_shards:,} shards can be used")
        raise InputError(
            f"{self._name}: its {num_shards:,} shards hold {held:,} usable examples, fewer than "
            f"the {self._needed:,} that one stream puts into a batch: lower the batch size or "
            "raise --num_streams"
        )

    def _nothing(self, clause: str) -> InputError:
        reasons = dict(self._reasons.most_common())
        clause = f"{self._name}: {clause}"
        return nothing_usable(clause, self._seen, reasons, self._wanted, _WAY_OUT)
