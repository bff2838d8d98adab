"""Upstream and downstream batches from webdataset tars.

Legend: B rows of a global batch, b rows of it in this process, S streams, L tokens, k features.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.downstream_tasks import DownstreamTask
from datacomp_flyt.flyt.examples import feature_row, label
from datacomp_flyt.flyt.shard_reader import Select, ShardReader
from datacomp_flyt.flyt.stream_settings import StreamSettings
from datacomp_flyt.flyt.streams import B, Batch, Stream, StreamLoader, blocks, shuffled
from datacomp_flyt.flyt.uid_features import UidFeatures
from datacomp_flyt.tars.nothing_usable import IMAGE
from datacomp_flyt.tars.samples import Sample, caption, decode, stored_image

T = TypeVar("T")

Tokenizer = Callable[[list[str]], Tensor]
"""Maps n texts to tokens, int64 [n, L], like open_clip's tokenizers."""

TASK_WEIGHTS = ("mixed", "balanced")
_LABELLED = f"{IMAGE} and a .cls or .label (with --captions txt a .txt, too)"

_DownstreamItem = tuple[bytes, int, str | None]
"""Encoded image, class index among the classes of all tasks, and caption or None."""


@dataclass(frozen=True)
class UpstreamBatch(Batch):
    """Upstream rows of this process.

    Attributes:
        images: float32 [b, 3, H, W].
        texts: captions, int64 [b, L].
        features: features of the scoring model, float32 [b, k]; None without a feature table.
    """

    images: Tensor
    texts: Tensor
    features: Tensor | None


@dataclass(frozen=True)
class DownstreamBatch(Batch):
    """Downstream rows of this process.

    Attributes:
        images: float32 [b', 3, H, W].
        labels: int64 [b'], indices into the concatenated classes of all tasks.
        captions: int64 [b', L]; None if captions are not read.
    """

    images: Tensor
    labels: Tensor
    captions: Tensor | None


def upstream_loader(
    shards: Sequence[str],
    tokenizer: Tokenizer,
    settings: StreamSettings,
    features: UidFeatures | None = None,
    name: str = "upstream shards",
) -> StreamLoader[UpstreamBatch]:
    """Load image-text pairs from tars of img2dataset (jpg, png or webp; txt; json with `uid`).

    Args:
        shards: paths or addresses, see `list_shards`.
        tokenizer: tokenizer of the captions.
        settings: batch, streams and randomness.
        features: features by uid, joined on the uid in the json; examples without features are
            skipped. None to load none.
        name: name of the data in messages, such as its flag and folder.

    Raises:
        InputError: the batch size is not divisible by streams and processes; while iterating, see
            `ShardReader` and `blocks`.
    """
    settings.check(name)
    make_stream = _UpstreamStreams(tuple(shards), tokenizer, settings, features, name)
    return _loader(make_stream, settings)


def downstream_loader(
    tasks: Sequence[DownstreamTask],
    settings: StreamSettings,
    task_weights: str = "mixed",
    tokenizer: Tokenizer | None = None,
    name: str = "downstream shards",
) -> StreamLoader[DownstreamBatch]:
    """Load labelled images from tars (jpg, png or webp; `cls` or `label` with the class index).

    Args:
        tasks: one or more tasks, whose classes are concatenated.
        settings: batch, streams and randomness.
        task_weights: "mixed" draws from the shards of all tasks together; "balanced" first draws
            the task of each example, with equal probabilities (Appendix C.9). The shuffle buffer
            is divided among balanced tasks.
        tokenizer: tokenizer of the captions in the tars' txt; None to read no captions.
        name: name of the data in messages.

    Raises:
        InputError: as in `upstream_loader`; `task_weights` is unknown; while iterating, a label is
            not an integer or out of the range of its task's class names.
    """
    settings.check(name)
    if task_weights not in TASK_WEIGHTS:
        raise InputError(
            f"--task_weights is {task_weights!r}, wanted one of {', '.join(TASK_WEIGHTS)}"
        )
    balanced = task_weights == "balanced"
    make_stream = _DownstreamStreams(tuple(tasks), settings, balanced, tokenizer, name)
    return _loader(make_stream, settings)


def _loader(make_stream: Callable[[int], Stream[B]], settings: StreamSettings) -> StreamLoader[B]:
    return StreamLoader(
        make_stream,
        settings.num_streams,
        settings.rank,
        settings.world_size,
        settings.num_workers,
    )


@dataclass(frozen=True)
class _UpstreamStreams:
    shards: tuple[str, ...]
    tokenizer: Tokenizer
    settings: StreamSettings
    features: UidFeatures | None
    name: str

    def __call__(self, stream: int) -> Stream[UpstreamBatch]:
        settings, skipped = self.settings, Counter[str]()
        reader = ShardReader(
            [(shard, self._select) for shard in self.shards],
            settings.random("upstream shards", stream),
            skipped,
            self.name,
            settings.block_size,
            settings.max_bad_share,
        )
        order = settings.random("upstream buffer", stream)
        return blocks(
            shuffled(iter(reader), *settings.shuffle_buffer, order),
            self._prepare,
            self._collate,
            settings.block_size,
            settings.random("upstream images", stream),
            skipped,
            self.name,
        )

    def _select(self, sample: Sample) -> tuple[bytes, str, int]:
        """Return the encoded image, its caption, and its row in the feature table or -1."""
        row = -1 if self.features is None else feature_row(sample, self.features)
        return stored_image(sample), caption(sample), row

    def _prepare(self, item: tuple[bytes, str, int]) -> tuple[Tensor, str, int]:
        image, text, row = item
        return decode(image, self.settings.transform), text, row

    def _collate(
        self, prepared: list[tuple[Tensor, str, int]], skipped: dict[str, int]
    ) -> UpstreamBatch:
        images, texts, rows = zip(*prepared, strict=True)
        features = None
        if self.features is not None:
            features = torch.from_numpy(self.features.values[list(rows)])
        return UpstreamBatch(
            torch.stack(images), self.tokenizer(list(texts)), features, skipped=skipped
        )


@dataclass(frozen=True)
class _DownstreamStreams:
    tasks: tuple[DownstreamTask, ...]
    settings: StreamSettings
    balanced: bool
    tokenizer: Tokenizer | None
    name: str

    def __call__(self, stream: int) -> Stream[DownstreamBatch]:
        settings, skipped = self.settings, Counter[str]()
        return blocks(
            self._items(stream, skipped),
            self._prepare,
            self._collate,
            settings.block_size,
            settings.random("downstream images", stream),
            skipped,
            self.name,
        )

    def _items(self, stream: int, skipped: Counter[str]) -> Iterator[_DownstreamItem]:
        shards: list[list[tuple[str, Select[_DownstreamItem]]]] = []
        offset = 0
        for task in self.tasks:
            select = functools.partial(self._select, task, offset)
            shards.append([(shard, select) for shard in task.shards])
            offset += len(task.class_names)
        if not self.balanced:
            return self._read(
                "", list(itertools.chain(*shards)), stream, skipped, self.settings.block_size
            )
        sources = [
            self._read(task.name, task_shards, stream, skipped, 1)
            for task, task_shards in zip(self.tasks, shards, strict=True)
        ]
        return _draw_from(sources, self.settings.random("downstream tasks", stream))

    def _read(
        self,
        task: str,
        shards: list[tuple[str, Select[_DownstreamItem]]],
        stream: int,
        skipped: Counter[str],
        needed: int,
    ) -> Iterator[_DownstreamItem]:
        """Yield shuffled examples of the task with this name, or of all tasks if it is ""."""
        settings = self.settings
        draw = settings.random(f"downstream shards {task}", stream)
        name = f"{self.name}, task {task!r}" if task else self.name
        reader = ShardReader(shards, draw, skipped, name, needed, settings.max_bad_share, _LABELLED)
        size, initial = (
            capacity // (len(self.tasks) if task else 1) for capacity in settings.shuffle_buffer
        )
        order = settings.random(f"downstream buffer {task}", stream)
        return shuffled(iter(reader), size, initial, order)

    def _select(self, task: DownstreamTask, offset: int, sample: Sample) -> _DownstreamItem:
        text = None if self.tokenizer is None else caption(sample)
        return stored_image(sample), offset + label(sample, task), text

    def _prepare(self, item: _DownstreamItem) -> tuple[Tensor, int, str | None]:
        image, class_index, text = item
        return decode(image, self.settings.transform), class_index, text

    def _collate(
        self, prepared: list[tuple[Tensor, int, str | None]], skipped: dict[str, int]
    ) -> DownstreamBatch:
        images, labels, texts = zip(*prepared, strict=True)
        captions = None if self.tokenizer is None else self.tokenizer(list(texts))
        return DownstreamBatch(torch.stack(images), torch.tensor(labels), captions, skipped=skipped)


def _draw_from(sources: list[Iterator[T]], rng: random.Random) -> Iterator[T]:
    """Yield without end the next item of a source that is drawn uniformly each time."""
    while True:
        yield next(sources[rng.randrange(len(sources))])
