"""The interface of engines, which run one function over many items in separate workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

TaskFactory = Callable[[str], Callable[[Any], Any]]
"""A factory: called once in each worker with the worker's device (`cpu`, `cuda:0`), it returns the
function that is applied to every item."""


class WorkerLost(Exception):
    """The worker that had an item ended: it was killed, ran out of memory, or lost its machine."""


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """The result of one item, or the error that ended it.

    Attributes:
        item: the item as it was given.
        result: the function's result; None if there is an error.
        error: the exception that the function raised, or `WorkerLost`.
    """

    item: T
    result: R | None = None
    error: Exception | None = None


class Engine(ABC):
    """Runs a function over items in workers, each with its own address space.

    As a context manager, an engine keeps resources that several runs share, such as a connection
    to a cluster.
    """

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027  (most keep nothing)
        """Release the shared resources."""

    @abstractmethod
    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        """Yield the outcome of every item once, in the order in which they finish.

        A lost worker costs only the item that it had, whose outcome is `WorkerLost`; another
        worker replaces it. Closing the generator stops the workers.

        Args:
            make: the factory of the function; picklable.
            items: the items; picklable.

        Raises:
            Exception: whatever `make` raised.
        """
