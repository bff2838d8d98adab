"""An engine whose workers are actors of a Ray cluster: one for each GPU, or for each CPU."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from datacomp_flyt.engines.engine import Engine, Outcome, T, TaskFactory, WorkerLost
from datacomp_flyt.engines.worker_pool import ONE_THREAD, TaskRunner, WorkerPool, run_tasks
from datacomp_flyt.errors import InputError
from datacomp_flyt.exits import keep_signals, socket_folder
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.threads import check_num_workers

_QUEUE_TIMEOUT = 600.0  # seconds until the first worker is scheduled
# the path that Ray appends to its temporary folder
_SOCKET_NAME_LENGTH = len("/ray/session_2026-12-01_03-20-00_123456_4194304/sockets/plasma_store.10")


class RayEngine(Engine):
    """Runs Ray actors. Every node needs this package.

    If the caller has initialised Ray, that connection is used and left open.
    """

    def __init__(self, address: str | None, num_workers: int | None, device: str) -> None:
        """Choose the cluster; `run` connects.

        Args:
            address: the address of a running cluster, or "auto"; None starts Ray on this machine.
            num_workers: the number of workers on the CPU, of one thread each; None for one per
                CPU of the cluster. Not used with GPUs.
            device: "cpu"; "cuda" for one worker on each GPU of the cluster; "auto" for GPUs if
                there are any.

        Raises:
            InputError: Ray is not installed, or `num_workers` is below 1.
        """
        with needs_extra("ray"):
            self._ray: Any = importlib.import_module("ray")
        if num_workers is not None:
            num_workers = check_num_workers(num_workers)
        self.address = address
        self.num_workers = num_workers
        self.device = device
        self._shared: contextlib.ExitStack | None = None

    def __enter__(self) -> Engine:
        self._shared = contextlib.ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._shared is not None
        self._shared.close()
        self._shared = None

    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        with contextlib.ExitStack() as own:
            (self._shared or own).enter_context(self._connected())
            resources = self._ray.cluster_resources()
            gpus = 0 if self.device == "cpu" else int(resources.get("GPU", 0))
            if self.device == "cuda" and not gpus:
                raise InputError("--device cuda: the Ray cluster has no GPU; --device cpu works")
            slots = gpus or self.num_workers or max(1, int(resources.get("CPU", 1)))
            yield from run_tasks(_Actors(self._ray, slots, bool(gpus), make), items)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        ray = self._ray
        if ray.is_initialized():
            yield
            return
        try:
            _check_port(self.address or "")
            with keep_signals():  # Ray replaces the handler of SIGTERM
                ray.init(
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({"address": self.address} if self.address else self._own_cluster()),
                )
        except InputError:
            raise
        except Exception as error:  # Ray raises many types, Exception included
            if self.address is None:
                raise InputError(
                    f"--engine ray: Ray does not start on this machine ({error}); "
                    "--engine processes works without"
                ) from error
            raise InputError(
                f"--ray_address {self.address}: no Ray cluster answers ({error}); "
                "start one with `ray start --head`, or leave the flag out"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()

    def _own_cluster(self) -> dict[str, Any]:
        """Return the arguments of `ray.init` that start Ray on this machine."""
        # without `address="local"`, Ray would join a cluster that is already running here
        options = {"address": "local", "num_cpus": self.num_workers, "include_dashboard": False}
        if "RAY_TMPDIR" not in os.environ:
            options["_temp_dir"] = os.path.join(socket_folder(_SOCKET_NAME_LENGTH), "ray")
        return options


class _Actors(WorkerPool[Any]):
    def __init__(self, ray: Any, slots: int, gpu: bool, make: TaskFactory) -> None:
        self.slots = slots
        self._ray = ray
        self._make = ray.put(make)
        self._device = "cuda:0" if gpu else "cpu"  # an actor sees only its own GPU
        # a restarted actor has not loaded the function; `run_tasks` starts a new one instead
        self._actor = ray.remote(
            num_cpus=1,
            num_gpus=int(gpu),
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {} if gpu else ONE_THREAD},
        )(_Worker)
        self._answers: dict[Any, Any] = {}
        self._starts: dict[Any, Any] = {}  # answers of `started`, there once the actor is scheduled

    def start(self, slot: int) -> Any:
        actor = self._actor.remote(os.getcwd())
        self._starts[actor] = actor.started.remote()
        self._answers[actor] = actor.load.remote(self._make, self._device)
        return actor

    def submit(self, worker: Any, item: Any) -> None:
        self._answers[worker] = worker.call.remote(item)

    def wait(self, workers: Sequence[Any]) -> list[tuple[Any, bytes | WorkerLost]]:
        owners = {self._answers[worker]: worker for worker in workers}
        # If an actor was scheduled and then does not answer, Ray itself reports it as lost, so only
        # the wait for a slot needs a limit.
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=_QUEUE_TIMEOUT)
            starts = [self._starts[worker] for worker in workers]
            if not ready and not self._ray.wait(starts, num_returns=1, timeout=0)[0]:
                raise InputError(
                    f"the Ray cluster had no free slot for a worker for {_QUEUE_TIMEOUT / 60:.0f} "
                    "minutes: see in `ray status` what takes its CPUs or GPUs"
                )
        return [(owners[answer], self._receive(owners[answer], answer)) for answer in ready]

    def release(self, worker: Any) -> None:
        self._ray.kill(worker)
        del self._answers[worker], self._starts[worker]

    def close(self) -> None:
        for worker in list(self._answers):
            self.release(worker)

    def _receive(self, worker: Any, answer: Any) -> bytes | WorkerLost:
        try:
            return self._ray.get(answer)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayError as error:
            self.release(worker)
            return WorkerLost(f"Ray actor ended: {' '.join(str(error).split())}")


class _Worker:
    """The actor: a `TaskRunner` whose arguments Ray has unpickled."""

    def __init__(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # for relative paths, if the nodes share a disk
            os.chdir(folder)
        self._runner = TaskRunner()

    def started(self) -> None:
        """Do nothing: an answer shows that the actor runs."""

    def load(self, make: TaskFactory, device: str) -> bytes:
        return self._runner.load(lambda: make, device)

    def call(self, item: Any) -> bytes:
        return self._runner.call(lambda: item)


def _check_port(address: str) -> None:
    """Raise OSError if nothing listens at an address: Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
