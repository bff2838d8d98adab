"""Runs work over files or blocks on threads of one process.

NumPy and pyarrow release the interpreter lock in their loops, and threads share the pool's
arrays, so selection needs neither processes nor copies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.errors import ReadError
from datacomp_flyt.progress import with_progress

_PAUSES = (0.1, 1.0)  # seconds before the retries of an item that could not be read

T = TypeVar("T")
R = TypeVar("R")


def map_threads(
    function: Callable[[T], R],
    items: Iterable[T],
    num_workers: int,
    progress: str | None = None,
    unit: str = "file",
) -> list[R]:
    """Return the results of `function` over `items`, in the order of `items`.

    Reads that fail are retried, see `retry_on_read_error`.

    Args:
        num_workers: the number of threads; 1 runs in the calling thread.
        progress: the label of the progress bar; None for no bar.
        unit: the name of an item for the bar.
    """
    items = list(items)
    function = retry_on_read_error(function)

    def collect(results: Iterator[R]) -> list[R]:
        if progress is None:
            return list(results)
        return list(with_progress(results, progress, len(items), unit))

    if num_workers <= 1 or len(items) <= 1:
        return collect(map(function, items))
    executor = ThreadPoolExecutor(num_workers)
    try:
        return collect(executor.map(function, items))
    finally:
        executor.shutdown(cancel_futures=True)  # Ctrl-C waits only for running items


def retry_on_read_error(function: Callable[[T], R]) -> Callable[[T], R]:
    """Make a function retry twice after a `ReadError`, which disks and networks may raise."""

    def with_retries(item: T) -> R:
        for pause in _PAUSES:
            try:
                return function(item)
            except ReadError:
                time.sleep(pause)
        return function(item)

    return with_retries


def blocks(stop: int, size: int, start: int = 0) -> list[slice]:
    """Return slices of at most `size` that cover range(start, stop)."""
    return [slice(begin, min(begin + size, stop)) for begin in range(start, stop, size)]


def default_num_workers() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return os.cpu_count() or 1


def check_num_workers(num_workers: int | None) -> int:
    """Return `num_workers`, by default one per core. Raises InputError if it is below 1."""
    if num_workers is None:
        return default_num_workers()
    return check_integer(num_workers, "--num_workers", least=1)
