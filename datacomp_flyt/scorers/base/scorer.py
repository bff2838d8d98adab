"""What a scorer is: something that reads one shard of a pool and gives each example its scores.

A shard is the unit of work, of resuming and of failing. Most scorers read metadata files and the
npz beside them (`MetadataScorer`); those that look at pictures read tars (`scorers.image_scorer`);
those that need to know the whole pool first say so (`PoolScorer`) and run as map, reduce, map.
"""

from __future__ import annotations

import argparse
import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import iter_uids

Arrays = dict[str, NDArray[Any]]
"""Named arrays: what is kept between the passes of a `PoolScorer`."""


class ScoredShard(NamedTuple):
    """What a scorer found in one shard.

    Attributes:
        uids: `u8,u8` array [n].
        values: float32 [n, columns]; NaN where an example has no score.
        counts: how many examples were left without a score, or noted otherwise, by reason.
    """

    uids: NDArray[np.void]
    values: NDArray[np.float32]
    counts: Counter[str]


class Scorer(ABC):
    """A published score. Pickled and sent to the workers, so what is large waits for `load`.

    Attributes:
        reads_images: the shards are tars, not metadata files.
        uses_gpu: it has work for one; without, workers are processes on CPU cores.
        columns: names of the scores, as published.
        settings: what decides the scores, as JSON: files finished under other settings are not
            mixed with new ones.
    """

    reads_images: ClassVar[bool] = False
    uses_gpu: ClassVar[bool] = False
    columns: tuple[str, ...]
    settings: dict[str, Any]

    @staticmethod
    @abstractmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the flags that only this scorer has."""

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Scorer:
        """The scorer that the flags describe: its arguments are called as the flags are.

        Raises:
            InputError: a flag or a file that it names is wrong; found here, before any work.
        """
        names = inspect.signature(cls).parameters
        return cls(**{name: getattr(args, name) for name in names})

    def load(self, device: str) -> None:  # noqa: B027  (most need nothing)
        """Get ready, once in each worker: models to `device`, target sets into memory."""

    @abstractmethod
    def score(self, shard: Any, state: Arrays) -> ScoredShard:
        """The scores of one shard: a `ParquetShard`, or the address of a tar.

        Args:
            state: of a `PoolScorer` (for this shard), else empty.

        Raises:
            InputError: the shard cannot be scored.
        """


class MetadataScorer(Scorer):
    """A scorer of metadata files and the npz beside them.

    Attributes:
        arrays: those of the npz that it reads.
    """

    arrays: tuple[str, ...] = ()

    @abstractmethod
    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        """Scores [n] or [n, columns] of the rows of a file, in its order.

        Args:
            counts: gets notes on examples without a usable embedding.
        """

    def score(self, shard: ParquetShard, state: Arrays) -> ScoredShard:
        counts: Counter[str] = Counter()
        values = np.asarray(self.score_rows(shard, state, counts), np.float32)
        values = values if values.ndim == 2 else values[:, None]
        uids, in_pool = read_uids(shard), shard.rows_in_pool()
        if in_pool is not None:
            uids, values = uids[in_pool], values[in_pool]
        return ScoredShard(uids, values, counts)


class PoolState(NamedTuple):
    """What a pool scorer knows after a reduction.

    Attributes:
        common: for all shards.
        by_shard: for one shard each, by its name (see `pool.shard_names`).
        final: the next pass over the shards scores them.
    """

    common: Arrays
    by_shard: Mapping[str, Arrays]
    final: bool


class PoolScorer(MetadataScorer):
    """A scorer that needs a statistic of the whole pool: map, reduce (once or more), map.

    Attributes:
        summarizes: False where the reduction needs no summaries.
    """

    summarizes: bool = True

    @abstractmethod
    def summarize(self, shard: ParquetShard, state: Arrays) -> Arrays:
        """What the next reduction needs to know of a shard (the map).

        Args:
            state: `common` and this shard's `by_shard` of the last reduction; empty at first.
        """

    @abstractmethod
    def reduce(
        self, state: PoolState | None, names: list[str], summary: Callable[[str], Arrays]
    ) -> PoolState:
        """The next state.

        Args:
            state: of the last reduction; None at first.
            names: of all shards, sorted.
            summary: reads the summary of a shard by name; ask for one at a time.
        """


def read_uids(shard: ParquetShard) -> NDArray[np.void]:
    """All uids of a metadata file, in its order."""
    parts = list(iter_uids(shard))
    return np.concatenate(parts) if parts else np.empty(0, "u8,u8")
