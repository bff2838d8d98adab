"""Rendezvous of the processes that torchrun starts, and steps that all of them run together.

Rank 0 runs a list of steps, and only some of them, such as a training, are work for all ranks. The
other ranks wait until rank 0 calls them to such a step by its name. Each of these steps gets a port
of its own for its process group.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from datacomp_flyt.errors import InputError, first_line

_NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_LIMIT = timedelta(minutes=5)  # for all ranks to join
_FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class TorchrunEnvironment:
    """The environment variables of torchrun.

    Attributes:
        rank: the rank of this process, from 0.
        world_size: the number of ranks.
        address, port: the address of rank 0.
    """

    rank: int
    world_size: int
    address: str
    port: int

    def rendezvous(self, purpose: str) -> Any:
        """Return a `torch.distributed` store that all ranks have joined.

        Args:
            purpose: a prefix of the store's keys; one rendezvous is possible for each purpose.

        Raises:
            InputError: a rank does not join in time, or rank 0 cannot be reached.
        """
        import torch.distributed as dist

        torchrun_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        this_rank = f"rank {self.rank} of {self.world_size}"
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                self.address, self.port, timeout=_LIMIT, wait_for_workers=False,
                is_master=self.rank == 0 and not torchrun_has_store,
            )  # fmt: skip
        except Exception as error:  # torch raises errors of several types
            raise InputError(
                f"{this_rank} cannot meet the others at MASTER_ADDR {self.address}, MASTER_PORT "
                f"{self.port} ({first_line(error)}): see that rank 0 runs there and the port is "
                "free, or start with torchrun"
            ) from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        joined = dist.PrefixStore(  # type: ignore[attr-defined]
            f"datacomp_flyt/{purpose}/{attempt}", store
        )
        joined.set(f"here {self.rank}", "")
        end = time.monotonic() + _LIMIT.total_seconds()
        for other in range(self.world_size):
            left = max(end - time.monotonic(), 0.001)
            try:
                joined.wait([f"here {other}"], timedelta(seconds=left))
            except Exception as error:
                raise InputError(
                    f"{this_rank} waited for rank {other}, which did not join "
                    f"({first_line(error)}): start WORLD_SIZE = {self.world_size} processes, as "
                    "torchrun does"
                ) from None
        return joined


def torchrun_environment() -> TorchrunEnvironment | None:
    """Read the variables of torchrun; None if it did not start this process.

    Raises:
        InputError: variables of torchrun are missing or invalid.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    required = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ.get(name, "") for name in required}
    missing = [name for name, value in given.items() if not value]
    integers = {name: value for name, value in given.items() if name != "MASTER_ADDR"}
    wrong = [name for name, value in integers.items() if not value.isdecimal()]
    if not missing and not wrong:
        rank, world_size, port = map(int, integers.values())
        if rank < world_size and 0 < port < 2**16:
            return TorchrunEnvironment(rank, world_size, given["MASTER_ADDR"], port)
        wrong = ["RANK"] if rank >= world_size else ["MASTER_PORT"]
    raise InputError(
        f"RANK is {given['RANK']!r} and WORLD_SIZE {given['WORLD_SIZE']!r}, as of one process of "
        f"several, but {' and '.join(missing or wrong)} {'missing' if missing else 'wrong'}: start "
        "with torchrun, or unset them for one process"
    )


class Ranks:
    """The processes that torchrun started, as seen from this one.

    Attributes:
        rank: the rank of this process, from 0.
        world_size: the number of ranks.
    """

    def __init__(self, environment: TorchrunEnvironment) -> None:
        self.rank, self.world_size = environment.rank, environment.world_size
        self._store = environment.rendezvous("ranks")
        self._calls = 0

    def call(self, name: str) -> dict[str, str]:
        """On rank 0, call the other ranks to a step, and return the environment to run it in."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self._publish(f"{port} {name}")
        return self._environment(port)

    def dismiss(self) -> None:
        """On rank 0, tell the other ranks that no step is left."""
        self._publish("")
        # the store may live in this process, so wait until the others have left; their errors
        # no longer matter
        with contextlib.suppress(RuntimeError):
            self._store.wait([f"left {rank}" for rank in range(1, self.world_size)], _LIMIT)

    def calls(self) -> Iterator[tuple[str, dict[str, str]]]:
        """On other ranks, yield name and environment of each step that rank 0 calls them to."""
        while call := self._next_call():
            port, name = call.split(" ", 1)
            self._calls += 1
            yield name, self._environment(int(port))
        self._store.set(f"left {self.rank}", "")

    def _next_call(self) -> str:
        # A step of rank 0 alone may take days. If rank 0 ends, torchrun ends the other ranks;
        # without torchrun the store is part of rank 0 and fails.
        self._store.wait([str(self._calls)], _FOREVER)
        return str(self._store.get(str(self._calls)).decode())

    def _publish(self, call: str) -> None:
        self._store.set(str(self._calls), call)
        self._calls += 1

    @staticmethod
    def _environment(port: int) -> dict[str, str]:
        # an earlier step has used torchrun's own store
        own_store = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        return {**os.environ, **own_store}


def ranks_of_torchrun() -> Ranks | None:
    """Join the other ranks; None if torchrun did not start this process.

    Raises:
        InputError: see `torchrun_environment` and `TorchrunEnvironment.rendezvous`.
    """
    environment = torchrun_environment()
    return None if environment is None else Ranks(environment)


def without_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment without the variables of torchrun, for a single process."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _NAMES and not name.startswith("TORCHELASTIC_")
    }
