"""Dispatches items to workers and replaces lost ones; shared by all engines.

A `WorkerPool` starts and reaches an engine's workers. Each worker runs a `TaskRunner`.
"""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

from datacomp_flyt.engines.engine import Outcome, T, TaskFactory, WorkerLost
from datacomp_flyt.engines.messages import pack, unpack
from datacomp_flyt.errors import InputError

# after this many workers in a row that ended while loading, no worker is started in that slot
START_ATTEMPTS = 3
_THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in _THREADS}
"""The environment of a CPU worker, which these libraries read when they are loaded."""

W = TypeVar("W")


class TaskRunner:
    """The worker's side: holds the function and applies it to items.

    Each answer is bytes that `_outcome` reads: a result or an error.
    """

    def load(self, make: Callable[[], TaskFactory], device: str) -> bytes:
        """Make the function by `make()(device)` and keep it; the answer has no result."""
        return _answer(self._load, make, device)

    def call(self, item: Callable[[], Any]) -> bytes:
        """Answer with the result of the function for `item()`."""
        return _answer(lambda: self._function(item()))

    def _load(self, make: Callable[[], TaskFactory], device: str) -> None:
        self._function = make()(device)
        if device == "cpu" and "torch" in sys.modules:  # an imported library may have raised it
            sys.modules["torch"].set_num_threads(1)


class WorkerPool(ABC, Generic[W]):
    """The workers of one run.

    Attributes:
        slots: the number of workers at a time. A replacement gets the slot of the lost worker.
    """

    slots: int

    @abstractmethod
    def start(self, slot: int) -> W:
        """Start a worker, whose first answer is that of `TaskRunner.load`."""

    @abstractmethod
    def submit(self, worker: W, item: Any) -> None:
        """Send an item to an idle worker; does not raise if the worker has ended."""

    @abstractmethod
    def wait(self, workers: Sequence[W]) -> list[tuple[W, bytes | WorkerLost]]:
        """Wait until workers answer or are lost; a lost worker needs no `release`."""

    @abstractmethod
    def release(self, worker: W) -> None:
        """Let an idle worker exit, since there are no more items."""

    @abstractmethod
    def close(self) -> None:
        """End all workers; those that have not been released are killed."""


def run_tasks(pool: WorkerPool[W], items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
    """Implement `Engine.run` on a `WorkerPool`, and close the pool at the end.

    Raises:
        InputError: every worker was lost before it finished `make`.
        Exception: whatever `make` raised.
    """
    pending = deque(items)
    free_slots = deque(range(pool.slots))
    failures = [0] * pool.slots
    starting: dict[W, int] = {}
    busy: dict[W, tuple[int, T]] = {}
    lost = WorkerLost("no slot for a worker")
    try:
        while pending or busy:
            while free_slots and len(starting) < len(pending):
                slot = free_slots.popleft()
                starting[pool.start(slot)] = slot
            if not starting and not busy:
                raise InputError(
                    f"every worker ended before it had loaded, {START_ATTEMPTS} times in a row "
                    f"({lost}): try fewer --num_workers, which takes less memory; a script has to "
                    'start workers below `if __name__ == "__main__":`, since each worker imports it'
                )
            done: list[Outcome[T, Any]] = []
            for worker, answer in pool.wait([*starting, *busy]):
                if worker in starting:
                    slot = starting.pop(worker)
                    if isinstance(answer, WorkerLost):
                        lost = answer
                        failures[slot] += 1
                        if failures[slot] < START_ATTEMPTS:
                            free_slots.append(slot)
                        continue
                    made = _outcome(None, answer)
                    if made.error is not None:
                        raise made.error
                    failures[slot] = 0
                else:
                    slot, item = busy.pop(worker)
                    done.append(_outcome(item, answer))
                    if isinstance(answer, WorkerLost):
                        free_slots.append(slot)
                        continue
                if pending:
                    busy[worker] = slot, pending.popleft()
                    pool.submit(worker, busy[worker][1])
                else:
                    pool.release(worker)
            # yielded last, so that workers have their next items while the caller is busy
            yield from done
    finally:
        pool.close()


def _outcome(item: T, answer: bytes | WorkerLost) -> Outcome[T, Any]:
    if isinstance(answer, WorkerLost):
        return Outcome(item, error=answer)
    result, error, trace = unpack(answer)
    if error is not None:
        error.__cause__ = RuntimeError(f"in the worker:\n{trace}")
    return Outcome(item, result, error)


def _answer(function: Callable[..., Any], *arguments: Any) -> bytes:
    try:
        return pack((function(*arguments), None, ""))
    except Exception as error:
        return pack((None, _portable(error), traceback.format_exc()))


def _portable(error: Exception) -> Exception:
    """Return the error, or if it cannot be pickled, one with its type and text."""
    try:
        if type(unpack(pack(error))) is type(error):
            return error
    except Exception:  # pickling a class may raise anything
        pass
    if isinstance(error, InputError):
        return InputError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
