"""Streams of batches whose content depends on nothing but (seed, epoch, stream).

A run has S streams. A global batch is one block of each, in their order; process r of W takes
streams [r S/W, (r+1) S/W), and each of its workers every n-th of these. So one process and
many see the same batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from datacomp_flyt.errors import InputError
from datacomp_flyt.tars.samples import Skip

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")

B = TypeVar("B", bound="Batch")

_MAX_FAILURES = 1000  # examples in a row that cannot be decoded


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of a batch: fields are tensors [b, ...] or None.

    Attributes:
        skipped: how many examples and shards were left out on the way, by reason.
    """

    skipped: dict[str, int] = dataclasses.field(default_factory=dict, kw_only=True)

    def to(self: B, device: torch.device | str) -> B:
        """The same with its tensors on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if torch.is_tensor(value := getattr(self, field.name))
        }
        return dataclasses.replace(self, **moved)


Stream = Generator[B, None, None]
"""Blocks without end; closing it closes what it reads."""


def concatenate(parts: Sequence[B]) -> B:
    """One batch of several: rows one below the other, counts added."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "skipped":
            joined[field.name] = dict(sum((Counter(value) for value in values), Counter[str]()))
        else:
            joined[field.name] = None if values[0] is None else torch.cat(values)
    return type(parts[0])(**joined)


def stream_random(purpose: str, seed: int, epoch: int, stream: int) -> random.Random:
    """The random numbers of one stream for one purpose."""
    return random.Random(f"{purpose}/{seed}/{epoch}/{stream}")


def shuffled(items: Iterator[Item], size: int, initial: int, rng: random.Random) -> Iterator[Item]:
    """Endless items through a buffer from which the next one is drawn.

    The first comes when the buffer holds `initial` items; after that two go in for one that goes
    out, until it holds `size`.
    """
    size = max(size, 1)
    buffer = list(itertools.islice(items, min(max(initial, 1), size)))
    while True:
        place = rng.randrange(len(buffer))
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        yield buffer.pop()
        buffer.extend(itertools.islice(items, min(2, size - len(buffer))))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the generators of torch (CPU), `random` and numpy start from a seed.

    Image transforms draw from all three. They go on as if nothing had happened afterwards.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


def blocks(
    items: Iterator[Item],
    prepare: Callable[[Item], Prepared],
    collate: Callable[[list[Prepared], dict[str, int]], B],
    size: int,
    rng: random.Random,
    skipped: Counter[str],
    name: str,
) -> Stream[B]:
    """Blocks of `size` examples, without end.

    Args:
        items: the examples.
        prepare: decodes one; may raise Skip and draw from the usual generators.
        collate: makes a batch of prepared examples and the counts of what was left out.
        size: examples in a block.
        rng: seeds those generators for each block.
        skipped: where `items` counts what it leaves out; emptied for each block.
        name: what to call the data in messages.

    Raises:
        InputError: a thousand examples in a row cannot be prepared.
    """
    while True:
        failures = 0
        prepared: list[Prepared] = []
        with seeded(rng.getrandbits(63)):
            while len(prepared) < size:
                item = next(items)
                try:
                    prepared.append(prepare(item))
                    failures = 0
                except Skip as skip:
                    skipped[skip.reason] += 1
                    failures += 1
                    if failures == _MAX_FAILURES:
                        raise InputError(
                            f"{name}: {failures:,} examples in a row are left out "
                            f"({skip.reason}): download the shards again"
                        ) from None
            batch = collate(prepared, dict(skipped))
        skipped.clear()
        yield batch


class StreamLoader(Generic[B]):
    """Iterates without end over one process's rows of the global batches.

    Each iterator starts the streams afresh. Close it, or leave its `with` block, to end its
    worker processes at once; they also end with the iterator and with the process.
    """

    def __init__(
        self,
        make_stream: Callable[[int], Stream[B]],
        num_streams: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        """
        Args:
            make_stream: the endless blocks of a stream, by its number.
            num_streams: of all processes together.
            rank, world_size: this process and how many there are.
            num_workers: worker processes, 0 for none. The greatest number up to it that divides
                this process's streams is used.

        Raises:
            InputError: the processes do not divide the streams.
        """
        if num_streams < 1 or num_streams % world_size:
            raise InputError(
                f"--num_streams {num_streams} cannot be shared out to {world_size} processes: "
                "give a multiple of their number"
            )
        number = num_streams // world_size
        self.streams = range(rank * number, (rank + 1) * number)
        self.num_workers = next(
            (n for n in range(min(num_workers, number), 0, -1) if number % n == 0), 0
        )
        self._make_stream = make_stream
        self._running: Stream[B] | None = None

    def __iter__(self) -> Iterator[B]:
        self.close()
        self._running = self._batches()
        return self._running

    def __enter__(self) -> StreamLoader[B]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the last iterator and its workers."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _batches(self) -> Stream[B]:
        found = self._worker_blocks() if self.num_workers else self._own_blocks()
        with contextlib.closing(found):
            while True:
                yield concatenate([next(found) for _ in self.streams])

    def _own_blocks(self) -> Stream[B]:
        streams = [self._make_stream(stream) for stream in self.streams]
        try:
            while True:
                for stream in streams:
                    yield next(stream)
        finally:
            for stream in streams:
                stream.close()

    def _worker_blocks(self) -> Stream[B]:
        dataset: Any = _BlockOfTurn(self._make_stream, self.streams)
        with warnings.catch_warnings():
            # that there are fewer cores than workers, and that a process with threads is forked
            warnings.simplefilter("ignore")
            loader: DataLoader[Any] = DataLoader(
                dataset,
                sampler=itertools.count(),
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=self.num_workers,
                # a step ahead, and at least something for each worker to do meanwhile
                prefetch_factor=max(2, len(self.streams) // self.num_workers),
                # forked workers share the feature table
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                generator=torch.Generator(),  # or else it would draw from the trainer's
            )
            turns = iter(loader)
        try:
            for block in turns:
                if isinstance(block, _Failure):
                    raise InputError(block.sentence)
                yield block
        finally:
            del turns  # its workers end now, even while a traceback holds this frame


@dataclasses.dataclass(frozen=True)
class _Failure:
    """An InputError on its way out of a worker: torch would add the worker's traceback to it."""

    sentence: str


class _BlockOfTurn(Generic[B]):
    """What a worker process reads: number t is the next block of local stream t modulo their count.

    DataLoader hands numbers to its workers in turn and returns blocks in the order of the numbers;
    a worker's numbers therefore always fall to the same streams, whose count it divides.
    """

    def __init__(self, make_stream: Callable[[int], Stream[B]], streams: Sequence[int]) -> None:
        self._make_stream, self._streams = make_stream, streams
        self._started: dict[int, Stream[B]] = {}

    def __getitem__(self, turn: int) -> B | _Failure:
        stream = self._streams[turn % len(self._streams)]
        if stream not in self._started:
            self._started[stream] = self._make_stream(stream)
        try:
            return next(self._started[stream])
        except InputError as error:
            return _Failure(str(error))


def _unchanged(block: Any) -> Any:
    return block
