"""Runs a function over the shards of a pool on an engine, with retries and a progress bar."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from datacomp_flyt.engines.engine import Engine, TaskFactory, WorkerLost
from datacomp_flyt.errors import ChangedError, InputError, ReadError
from datacomp_flyt.progress import Progress

_PAUSE = 1.0  # seconds before the first retry; each further pause is five times longer
_LONGEST_PAUSE = 60.0  # seconds


def run_shards(
    engine: Engine,
    make: TaskFactory,
    items: Mapping[str, Any],
    write: Callable[[str, Any], int],
    retries: int,
    label: str,
    num_rows: Mapping[str, int] | None = None,
    give_up: bool = False,
) -> dict[str, Exception]:
    """Run the function on each shard, and pass its result to `write` in this process.

    Args:
        engine: the engine that runs the function.
        make: the factory of the function, see `TaskFactory`; the function gets (name, item).
        items: the items by the name of their shard.
        write: called with name and result as they come; returns the number of rows written.
        retries: the number of times that a failed shard is retried. A retry comes after the other
            shards have been tried, and after a pause unless only workers were lost. A shard whose
            content is wrong (`InputError` other than `ReadError`) is not retried.
        label: the label of the progress bar.
        num_rows: the rows of each shard, to show rows/s; None if they are not known beforehand.
        give_up: stop at the first error that a retry cannot mend, and raise it.

    Returns:
        the last error of each shard that was never finished, by name.

    Raises:
        Exception: whatever `make` raised, or with `give_up` the function.
        InputError: a shard has changed since the run began.
    """
    left, errors = dict(items), dict[str, Exception]()
    progress = _ShardProgress(label, items, num_rows)
    with progress:
        for attempt in range(retries + 1):
            todo = [(name, item) for name, item in left.items() if _retryable(errors.get(name))]
            if not todo:
                break
            if attempt and any(not isinstance(errors.get(name), WorkerLost) for name, _ in todo):
                time.sleep(min(_PAUSE * 5 ** min(attempt - 1, 9), _LONGEST_PAUSE))
            with contextlib.closing(engine.run(make, todo)) as outcomes:
                for outcome in outcomes:
                    name = outcome.item[0]
                    if outcome.error is None:
                        rows = write(name, outcome.result)
                        errors.pop(name, None)
                        del left[name]
                        progress.add(name, rows)
                    elif isinstance(outcome.error, ChangedError) or (
                        give_up and not _retryable(outcome.error)
                    ):
                        raise outcome.error
                    else:
                        errors[name] = outcome.error
    return {name: errors[name] for name in sorted(errors)}


class _ShardProgress(Progress):
    """A progress bar of rows with a note of the shards, or of shards with a note of rows/s.

    The bar counts rows if their numbers are known, so that its time left is that of rows.
    """

    def __init__(
        self, label: str, shards: Collection[str], num_rows: Mapping[str, int] | None
    ) -> None:
        total = len(shards) if num_rows is None else sum(num_rows[name] for name in shards)
        super().__init__(label, total, "shard" if num_rows is None else "row", unit_scale=True)
        self._num_rows, self._num_shards = num_rows, len(shards)
        self._shards_done = self._rows_done = 0
        self._start = time.monotonic()

    def add(self, name: str, rows: int) -> None:
        """Count a finished shard, of which so many rows were written."""
        self._shards_done += 1
        self._rows_done += rows
        if self._num_rows is None:
            self.note(f"{self._rows_done / (time.monotonic() - self._start):,.0f} rows/s")
        else:
            self.note(f"{self._shards_done} of {self._num_shards} shards")
        self.update(1 if self._num_rows is None else self._num_rows[name])


def _retryable(error: Exception | None) -> bool:
    return isinstance(error, ReadError) or not isinstance(error, InputError)
