"""The interface of a scorer, which gives each example of a pool one score or more.

A shard is the unit of work, of retries and of resuming. Most scorers read metadata files and the
npz beside them (`MetadataScorer`); an `ImageScorer` (in `image_scorer`) reads tars of images; a
`PoolScorer` needs a statistic of the whole pool first and runs as map, reduce, map.
"""

from __future__ import annotations

import argparse
import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import iter_uids

Arrays = dict[str, NDArray[Any]]
"""Named arrays, which a `PoolScorer` keeps between its passes."""

COMMON_FLAGS = ("column", "metadata_dir", "scores_dir", "shards_dir")
"""Flags that `datacomp-flyt score` has for every scorer.

If the constructor has a parameter of one of these names, it receives that flag's value; no new flag
is added.
"""


class ScoredShard(NamedTuple):
    """The scores of one shard.

    Attributes:
        uids: `u8,u8` array [n].
        values: float32 [n, columns]; NaN where an example has no score.
        counts: the number of examples for each remark, such as the reason why a score is missing.
    """

    uids: NDArray[np.void]
    values: NDArray[np.float32]
    counts: Counter[str]


class Scorer(ABC):
    """A score of image-text pairs. The constructor's keyword arguments are the scorer's options.

    A scorer is pickled and sent to the workers, so whatever is large waits for `load`.

    Attributes:
        reads_images: whether its shards are tars instead of metadata files.
        uses_gpu: whether it can use a GPU; otherwise workers are processes on CPU cores.
        columns: the names of its score columns, as published.
        settings: everything that decides the scores, as a JSON object. A folder with scores of
            other settings is refused. By default they are the object's public attributes that are
            strings, numbers, booleans or None.
    """

    reads_images: ClassVar[bool] = False
    uses_gpu: ClassVar[bool] = False
    columns: tuple[str, ...]

    @cached_property
    def settings(self) -> dict[str, Any]:
        kinds = (str, int, float, type(None))
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {name: value for name, value in public.items() if isinstance(value, kinds)}

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the scorer's own flags, each named as the option that gets its value.

        By default one for each constructor parameter whose default is a string or a number.
        """
        for name, parameter in inspect.signature(cls).parameters.items():
            default = parameter.default
            if name not in COMMON_FLAGS and type(default) in (str, int, float):
                parser.add_argument(
                    f"--{name}", type=type(default), default=default, help="default: %(default)s"
                )

    def load(self, device: str) -> None:  # noqa: B027  (most need nothing)
        """Prepare a worker, once: move models to `device`, read target sets."""

    @abstractmethod
    def score(self, shard: Any, state: Arrays) -> ScoredShard:
        """Score one shard: a `ParquetShard`, or the address of a tar.

        Args:
            state: the arrays of `PoolState.common` and of this shard; empty for other scorers than
                a `PoolScorer`.

        Raises:
            InputError: the shard cannot be scored.
        """


class MetadataScorer(Scorer):
    """A scorer of metadata files and the npz beside them.

    A subclass names `columns` and returns from `score_rows` one float for each row of the file (or
    one for each row and column), in the file's order, and NaN for a row without a score.

    Attributes:
        arrays: the npz arrays that it reads, if any.
    """

    arrays: tuple[str, ...] = ()

    @abstractmethod
    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        """Scores [n] or [n, columns] of the rows of a file, in its order.

        Args:
            state: see `Scorer.score`.
            counts: receives the number of examples for each remark, such as "no caption".
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
    """The state of a pool scorer after a reduction.

    Attributes:
        common: arrays for all shards.
        by_shard: arrays for one shard each, by its name (see `tars.shard_names`).
        final: whether the next pass over the shards scores them.
    """

    common: Arrays
    by_shard: Mapping[str, Arrays]
    final: bool


class PoolScorer(MetadataScorer):
    """A scorer that needs a statistic of the whole pool: map, reduce (once or more), map.

    Attributes:
        summarizes: whether the next reduction needs summaries; if False, `summarize` is not called.
    """

    summarizes: bool = True

    @abstractmethod
    def summarize(self, shard: ParquetShard, state: Arrays) -> Arrays:
        """Summarise a shard for the next reduction (the map).

        Args:
            state: `common` and this shard's `by_shard` of the last reduction; empty at first.
        """

    @abstractmethod
    def reduce(
        self, state: PoolState | None, names: list[str], summary: Callable[[str], Arrays]
    ) -> PoolState:
        """Reduce the summaries to the next state.

        Args:
            state: the state after the last reduction; None at first.
            names: the names of all shards, sorted.
            summary: reads the summary of a shard by its name; ask for one at a time.
        """


def read_uids(shard: ParquetShard) -> NDArray[np.void]:
    """Read all uids of a metadata file, in its order."""
    parts = list(iter_uids(shard))
    return np.concatenate(parts) if parts else np.empty(0, "u8,u8")
