"""Work over files or blocks on threads of one process.

NumPy and pyarrow release the interpreter lock in their loops, and threads share the pool's
arrays, so selection needs neither processes nor copies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from datacomp_flyt.errors import ReadError
from datacomp_flyt.progress import with_progress

_PAUSES = (0.1, 1.0)  # seconds before an item that could not be read is tried again

T = TypeVar("T")
R = TypeVar("R")


def map_threads(
    function: Callable[[T], R],
    items: Iterable[T],
    num_workers: int,
    progress: str | None = None,
    unit: str = "file",
) -> list[R]:
    """Results of `function` over `items`, in the order of `items`.

    Args:
        num_workers: threads; 1 runs in the calling thread.
        progress: the name of the work for its progress bar; None to show nothing.
        unit: the name of an item for the bar.

    An item whose read failed is tried again: see `retry_on_read_error`.
    """
    items = list(items)
    function = retry_on_read_error(function)

    def watched(results: Iterator[R]) -> list[R]:
        if progress is None:
            return list(results)
        return list(with_progress(results, progress, len(items), unit))

    if num_workers <= 1 or len(items) <= 1:
        return watched(map(function, items))
    executor = ThreadPoolExecutor(num_workers)
    try:
        return watched(executor.map(function, items))
    finally:
        executor.shutdown(cancel_futures=True)  # Ctrl-C waits only for items that have begun


def retry_on_read_error(function: Callable[[T], R]) -> Callable[[T], R]:
    """It, tried again, twice, where storage failed (`ReadError`), as disks and networks may."""

    def trying(item: T) -> R:
        for pause in _PAUSES:
            try:
                return function(item)
            except ReadError:
                time.sleep(pause)
        return function(item)

    return trying


def blocks(stop: int, size: int, start: int = 0) -> list[slice]:
    """Slices of at most `size` that cover range(start, stop)."""
    return [slice(begin, min(begin + size, stop)) for begin in range(start, stop, size)]


def default_num_workers() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return os.cpu_count() or 1
