"""Run a function over the shards of a pool on an engine: retries, progress, what failed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from datacomp_flyt.engines.engine import Engine, TaskFactory, WorkerLost
from datacomp_flyt.errors import ChangedError, InputError, ReadError
from datacomp_flyt.progress import Progress

_PAUSE = 1.0  # seconds before a second try; five times as many before each more, up to
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
    """Give each shard to a worker, and its result to `write`, in this process, as it comes.

    Args:
        make: see `engine.Make`; its function gets (name, item).
        items: by the name of the shard.
        write: called with name and result; returns how many rows they were.
        retries: the number of retries of a failed shard, after all others and a pause; a shard
            whose content is wrong (`InputError` other than `ReadError`) is not.
        label: the text of the progress bar.
        num_rows: the rows of each shard, for rows/s; None if they are not known beforehand.
        give_up: raise the first error that is not tried again.

    Returns:
        The last error of each shard that was never finished, by name.

    Raises:
        InputError: `make` raised it, or its function did with `give_up`, or a shard has changed
            since the run began.
    """
    left, errors = dict(items), dict[str, Exception]()
    total = len(left) if num_rows is None else sum(num_rows[name] for name in left)
    unit = "shard" if num_rows is None else "row"
    rows, began = 0, time.monotonic()
    # rows move the bar where they are known, so its rate and the time left are of rows
    with Progress(label, total, unit, unit_scale=True) as bar:
        for attempt in range(retries + 1):
            todo = [(name, item) for name, item in left.items() if _may_pass(errors.get(name))]
            if not todo:
                break
            if any(not isinstance(errors.get(name), WorkerLost) for name, _ in todo) and attempt:
                time.sleep(min(_PAUSE * 5 ** min(attempt - 1, 9), _LONGEST_PAUSE))
            with contextlib.closing(engine.run(make, todo)) as outcomes:
                for outcome in outcomes:
                    name = outcome.item[0]
                    if outcome.error is not None:
                        if isinstance(outcome.error, ChangedError):
                            raise outcome.error
                        if give_up and not _may_pass(outcome.error):
                            raise outcome.error
                        errors[name] = outcome.error
                        continue
                    rows += write(name, outcome.result)
                    errors.pop(name, None)
                    del left[name]
                    done = f"{len(items) - len(left)} of {len(items)} shards"
                    if num_rows is None:  # then the bar is of shards
                        done = f"{rows / (time.monotonic() - began):,.0f} rows/s"
                    bar.note(done)
                    bar.update(1 if num_rows is None else num_rows[name])
    return {name: errors[name] for name in sorted(errors)}


def _may_pass(error: Exception | None) -> bool:
    return isinstance(error, ReadError) or not isinstance(error, InputError)
