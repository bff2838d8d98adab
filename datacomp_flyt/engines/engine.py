"""What an engine is: somewhere to run one function over many items, workers of its own apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

TaskFactory = Callable[[str], Callable[[Any], Any]]
"""Run once in each worker, with its device (`cpu`, `cuda:0`): makes the function of the items."""


class WorkerLost(Exception):
    """The worker of an item ended: killed, out of memory, or its machine gone."""


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """What became of one item: a result, or the error that ended it.

    Attributes:
        item: as given.
        result: of the function; None where there is an error.
        error: what the function raised, or `WorkerLost`.
    """

    item: T
    result: R | None = None
    error: Exception | None = None


class Engine(ABC):
    """Runs a function over items in workers, each with an address space of its own.

    As a context manager it keeps what several runs share, such as a connection to a cluster.
    """

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027  (most keep nothing)
        """Let go of it."""

    @abstractmethod
    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        """Yield every item's outcome, each once, as they come.

        A worker that is lost costs only the item it had: that one's outcome is `WorkerLost`, and
        another worker takes its place. Closing the generator stops the workers.

        Args:
            make: picklable.
            items: picklable.

        Raises:
            InputError: `make` raised it in a worker.
        """
