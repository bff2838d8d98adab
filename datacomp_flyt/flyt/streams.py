"""Streams of batches whose content depends on (seed, epoch, stream) alone.

A run has S streams, and a global batch is one block of each, in order. Process r of W reads streams
[r S/W, (r+1) S/W), and each of its n workers every n-th of these. Therefore the batches do not
depend on the number of processes and workers.
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
    """Rows of a batch; the fields of subclasses are tensors [b, ...] or None.

    Attributes:
        skipped: number of examples and shards that were skipped since the last batch, by reason.
    """

    skipped: dict[str, int] = dataclasses.field(default_factory=dict, kw_only=True)

    def to(self: B, device: torch.device | str) -> B:
        """Return a copy with all tensors on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if torch.is_tensor(value := getattr(self, field.name))
        }
        return dataclasses.replace(self, **moved)


Stream = Generator[B, None, None]
"""Yields blocks without end; closing it closes the files that it reads."""


def concatenate(parts: Sequence[B]) -> B:
    """Concatenate the rows of several batches, and add their counts."""
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
    """Return the random generator of one stream for one purpose."""
    return random.Random(f"{purpose}/{seed}/{epoch}/{stream}")


def shuffled(items: Iterator[Item], size: int, initial: int, rng: random.Random) -> Iterator[Item]:
    """Shuffle endless items through a buffer.

    The first item is drawn when the buffer holds `initial` items. After that, two items are added
    for each that is drawn, until the buffer holds `size`.
    """
    size = max(size, 1)
    buffer = list(itertools.islice(items, min(max(initial, 1), size)))
    while True:
        index = rng.randrange(len(buffer))
        buffer[index], buffer[-1] = buffer[-1], buffer[index]
        yield buffer.pop()
        buffer.extend(itertools.islice(items, min(2, size - len(buffer))))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), `random` and NumPy inside the block.

    Image transforms draw from all three. Their states are restored at the end of the block.
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
    """Yield blocks of `size` examples, without end.

    Args:
        items: the examples.
        prepare: decodes an example; may raise Skip, and may draw from the global generators.
        collate: makes a batch of prepared examples and of counts of skipped examples.
        size: number of examples in a block.
        rng: draws the seed of the global generators for each block.
        skipped: counter in which `items` counts the examples that it skips; cleared after each
            block.
        name: name of the data in messages.

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

    Each iterator starts the streams from their beginning. Closing the loader, or leaving its `with`
    block, ends the worker processes at once; they also end with the iterator and the process.
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
            make_stream: opens a stream, given its index.
            num_streams: number of streams of all processes together.
            rank, world_size: rank of this process, and number of processes.
            num_workers: number of worker processes, 0 for none; reduced to the largest number that
                divides the number of this process's streams.

        Raises:
            InputError: the processes do not divide the streams.
        """
        if num_streams < 1 or num_streams % world_size:
            raise InputError(
                f"--num_streams {num_streams} cannot be shared out to {world_size} processes: "
                "give a multiple of their number"
            )
        num_local = num_streams // world_size
        self.streams = range(rank * num_local, (rank + 1) * num_local)
        self.num_workers = next(
            (n for n in range(min(num_workers, num_local), 0, -1) if num_local % n == 0), 0
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
        """Close the last iterator, and end its workers."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _batches(self) -> Stream[B]:
        blocks = self._worker_blocks() if self.num_workers else self._own_blocks()
        with contextlib.closing(blocks):
            while True:
                yield concatenate([next(blocks) for _ in self.streams])

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
            # torch warns of more workers than cores, and of forking a process with threads
            warnings.simplefilter("ignore")
            loader: DataLoader[Any] = DataLoader(
                dataset,
                sampler=itertools.count(),
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=self.num_workers,
                # one step ahead, and at least two blocks for each worker
                prefetch_factor=max(2, len(self.streams) // self.num_workers),
                # forked workers share the feature table
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                generator=torch.Generator(),  # otherwise it draws from the global generator
            )
            turns = iter(loader)
        try:
            for block in turns:
                if isinstance(block, _Failure):
                    raise InputError(block.sentence)
                yield block
        finally:
            del turns  # ends its workers now, even if a traceback holds this frame


@dataclasses.dataclass(frozen=True)
class _Failure:
    """The message of an InputError in a worker, to which torch would add a traceback."""

    sentence: str


class _BlockOfTurn(Generic[B]):
    """Dataset of a worker process: item t is the next block of local stream t modulo their number.

    DataLoader gives indices to its workers in turn, and returns blocks in the order of the indices.
    Since the number of workers divides the number of local streams, each stream is read by one
    worker.
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
