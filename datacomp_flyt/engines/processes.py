"""An engine whose workers are local processes: one for each GPU, or `num_workers` on the CPU."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from datacomp_flyt.engines.engine import Engine, Outcome, T, TaskFactory, WorkerLost
from datacomp_flyt.engines.messages import pack, unpack
from datacomp_flyt.engines.worker_pool import ONE_THREAD, TaskRunner, WorkerPool, run_tasks
from datacomp_flyt.errors import InputError
from datacomp_flyt.threads import check_num_workers

SHUTDOWN_TIMEOUT = 5.0  # seconds that a released worker has to exit


class ProcessEngine(Engine):
    """Runs spawned processes, with a pipe to each.

    Functions and items must be defined in a module: workers cannot import those of a script that
    is read from stdin (`python -`).
    """

    def __init__(self, num_workers: int, device: str) -> None:
        """Choose the devices of the workers.

        Args:
            num_workers: the number of workers on the CPU, of one thread each; not used with GPUs,
                which have one worker each.
            device: "cpu"; "cuda" for all visible GPUs; "auto" for GPUs if there are any.

        Raises:
            InputError: `num_workers` is below 1, or "cuda" without a GPU.
        """
        num_workers = check_num_workers(num_workers)
        gpus = 0 if device == "cpu" else _visible_gpus()
        if device == "cuda" and not gpus:
            raise InputError("--device cuda: PyTorch sees no GPU here; --device cpu works without")
        self.devices = [f"cuda:{gpu}" for gpu in range(gpus)] or ["cpu"] * num_workers

    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        return run_tasks(_Processes(self.devices, make), items)


@dataclass(eq=False)
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: connection.Connection[Any, Any]


class _Processes(WorkerPool[_Worker]):
    def __init__(self, devices: Sequence[str], make: TaskFactory) -> None:
        self.slots = len(devices)
        self._devices = devices
        self._make = pack(make)
        self._working: set[_Worker] = set()
        self._released: list[_Worker] = []

    def start(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        pipe, pipe_of_worker = context.Pipe()
        device = self._devices[slot]
        # daemon: killed if this interpreter exits without closing the generator
        process = context.Process(target=_work, args=(pipe_of_worker, device), daemon=True)
        worker = _Worker(process, pipe)
        with pipe_of_worker, _worker_environment(ONE_THREAD if device == "cpu" else {}):
            process.start()
        self._working.add(worker)
        _send(pipe, self._make)
        return worker

    def submit(self, worker: _Worker, item: Any) -> None:
        _send(worker.pipe, pack(item))

    def wait(self, workers: Sequence[_Worker]) -> list[tuple[_Worker, bytes | WorkerLost]]:
        owners = {worker.pipe: worker for worker in workers} | {
            worker.process.sentinel: worker for worker in workers
        }
        ready = connection.wait(list(owners))
        finished = dict.fromkeys(owners[handle] for handle in ready)  # type: ignore[index]
        return [(worker, self._receive(worker)) for worker in finished]

    def release(self, worker: _Worker) -> None:
        worker.pipe.close()
        self._working.remove(worker)
        self._released.append(worker)

    def close(self) -> None:
        for worker in self._working:
            worker.process.kill()
        for worker in self._released:
            worker.process.join(SHUTDOWN_TIMEOUT)
            worker.process.kill()
        for worker in [*self._working, *self._released]:
            _reap(worker)
        self._working.clear()
        self._released.clear()

    def _receive(self, worker: _Worker) -> bytes | WorkerLost:
        with contextlib.suppress(EOFError, OSError):
            if worker.pipe.poll():
                return worker.pipe.recv_bytes()
        self._working.remove(worker)
        pid = worker.process.pid
        worker.process.kill()
        return WorkerLost(f"worker process {pid} ended: {exit_text(_reap(worker))}")


def _work(pipe: connection.Connection[Any, Any], device: str) -> None:
    """Run a worker: answer messages until the driver closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    runner = TaskRunner()
    with contextlib.suppress(EOFError, OSError):
        # the runner unpickles, so an error in unpickling is sent back as an answer
        pipe.send_bytes(runner.load(functools.partial(unpack, pipe.recv_bytes()), device))
        while True:
            pipe.send_bytes(runner.call(functools.partial(unpack, pipe.recv_bytes())))


def _end_with_driver() -> None:
    """End this worker when the driver ends: while it computes, it does not see its pipe close."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    connection.wait([driver.sentinel])
    os._exit(1)


def _send(pipe: connection.Connection[Any, Any], message: bytes) -> None:
    with contextlib.suppress(OSError):  # the worker has ended, which `wait` reports
        pipe.send_bytes(message)


def _reap(worker: _Worker) -> int | None:
    """Wait for a worker that ends; return its exit code, None if it does not end in time."""
    worker.pipe.close()
    worker.process.join(SHUTDOWN_TIMEOUT)  # exceeded only if the kernel waits for a lost disk
    exitcode = worker.process.exitcode
    if exitcode is not None:
        worker.process.close()
    return exitcode


def exit_text(exitcode: int | None) -> str:
    """Return a clause that says how a process ended."""
    if exitcode == -signal.SIGKILL:
        return "killed (SIGKILL), often for want of memory"
    if exitcode is not None and exitcode < 0:
        return f"killed ({signal.Signals(-exitcode).name})"
    return "killed" if exitcode is None else f"exit code {exitcode}"


@contextlib.contextmanager
def _worker_environment(environment: dict[str, str]) -> Iterator[None]:
    """Set the environment that a worker started in the block inherits, and block Ctrl-C for it.

    The worker ignores Ctrl-C itself once it runs `_work`.
    """
    before = {name: os.environ.get(name) for name in environment}
    main = vars(sys.modules["__main__"])
    # spawn would fail to open the `__file__` of a script that is read from stdin
    file = main.get("__file__")
    hidden = file is not None and not os.path.exists(file)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(environment)
    if hidden:
        del main["__file__"]
    try:
        yield
    finally:
        if hidden:
            main["__file__"] = file
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _visible_gpus() -> int:
    if importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return int(torch.cuda.device_count())
