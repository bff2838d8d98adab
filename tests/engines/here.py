"""An engine that runs in this process and records its items."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Sequence
from typing import Any

from datacomp_flyt.engines.engine import Engine, Outcome, T, TaskFactory


class Killed(Exception):
    """Raised when the driver ends."""


class Here(Engine):
    """Runs items in this process, and pickles them as if they went to another.

    Attributes:
        names: of the items that it ran, in order.
    """

    def __init__(self, most: int | None = None) -> None:
        """
        Args:
            most: items before it is killed; None for never.
        """
        self.names: list[str] = []
        self._most = most

    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        function = pickle.loads(pickle.dumps(make))("cpu")
        for item in pickle.loads(pickle.dumps(items)):
            if len(self.names) == self._most:
                raise Killed
            self.names.append(item[0])
            try:
                outcome = Outcome(item, function(item))
            except Exception as error:
                outcome = Outcome(item, error=error)
            yield outcome
