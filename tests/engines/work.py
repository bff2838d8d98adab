"""Functions that the workers of the tests run, at module level for spawned processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from datacomp_flyt.errors import InputError


class UnpicklableError(Exception):
    """An error that can be pickled but not unpickled."""

    def __init__(self, path: str, row: int) -> None:
        super().__init__(f"{path} row {row}")


class Make(NamedTuple):
    """Turn a function of (device, item) into a `TaskFactory`."""

    function: Callable[..., Any]

    def __call__(self, device: str) -> Callable[[Any], Any]:
        return Call(self.function, device)


class Call(NamedTuple):
    function: Callable[..., Any]
    device: str

    def __call__(self, item: Any) -> Any:
        return self.function(self.device, item)


class Marked(NamedTuple):
    """An item with a folder in which workers leave marks."""

    folder: Path
    number: int


def square(device: str, number: int) -> int:
    return number * number


def project(device: str, seed: int) -> np.ndarray:
    """Return float32 [64], sums long enough to depend on the number of threads."""
    draws = np.random.default_rng(seed)
    a, b = (draws.standard_normal((64, 3000), dtype=np.float32) for _ in range(2))
    return np.asarray((a @ b.T).diagonal())


def ramp(device: str, numbers: int) -> np.ndarray:
    return np.arange(numbers, dtype=np.float64)


def total(device: str, array: np.ndarray) -> float:
    return float(array.sum())


def pid_and_device(device: str, item: Marked) -> tuple[int, str]:
    """Wait until as many workers have started as the item's number."""
    leave_mark_and_wait(item.folder, f"pid{os.getpid()}", item.number)
    return os.getpid(), device


def leave_mark_and_wait(folder: Path, mark: str, number: int) -> None:
    (folder / mark).touch()
    end = time.monotonic() + 40
    while len(list(folder.iterdir())) < number and time.monotonic() < end:
        time.sleep(0.02)


def fail(device: str, number: int) -> int:
    if number % 4 == 1:
        raise ValueError(f"item {number}", number)
    if number % 4 == 2:
        raise InputError(f"item {number} has no rows")
    if number % 4 == 3:
        raise UnpicklableError("item", number)
    return number


def unpicklable(device: str, number: int) -> Any:
    return (lambda: number) if number % 2 else number


def killed_once(device: str, item: Marked) -> int:
    """Kill the first worker of an item that is a multiple of 5."""
    mark = item.folder / str(item.number)
    if item.number % 5 == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item.number


def threads(device: str, item: None) -> tuple[int, list[int]]:
    import torch
    from threadpoolctl import threadpool_info

    return torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]


def sleep_when_two_work(device: str, item: Marked) -> int:
    """Sleep for two minutes, except for item 0."""
    leave_mark_and_wait(item.folder, f"pid{os.getpid()}", 2)
    if item.number:
        time.sleep(120)
    return item.number


def compute_for_long(device: str, item: Marked) -> None:
    (item.folder / f"pid{os.getpid()}").touch()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        pass


def node(device: str, item: Marked) -> tuple[int, str]:
    """Return the node of `two_nodes` that this worker runs on, once both have workers."""
    name = os.environ["TWO_NODES"].rpartition(" ")[2]
    leave_mark_and_wait(item.folder, name, 2)
    time.sleep(0.2)
    return item.number, name


def refuse(device: str) -> NoReturn:
    raise InputError("m.pt is not a model")


def break_down(device: str) -> NoReturn:
    raise KeyError("weights")


def end(device: str) -> NoReturn:
    os._exit(7)


class EndOnce(NamedTuple):
    """End the first two workers while they load."""

    folder: Path

    def __call__(self, device: str) -> Callable[[int], int]:
        for attempt in ("first", "second"):
            try:
                (self.folder / attempt).touch(exist_ok=False)
            except FileExistsError:
                continue
            os._exit(7)
        return Call(square, device)


def main() -> None:
    """Run a driver (arguments: ENGINE FOLDER) whose workers compute for a long time."""
    from datacomp_flyt.engines.processes import ProcessEngine

    folder = Path(sys.argv[1])
    items = [Marked(folder, number) for number in range(8)]
    for _ in ProcessEngine(2, "cpu").run(Make(compute_for_long), items):
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
    main()
