"""A program that torchrun has started several times: rank 0 runs it, and calls the others to help.

Of a list of steps only some are work for all ranks, such as a training. The others wait until rank
0 calls them by a step's name; each such step gets a port of its own for what its processes tell
each other.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta

_NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_FOREVER = timedelta(days=365)


class Ranks:
    """This process among those that torchrun has started.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
    """

    def __init__(self) -> None:
        """From the variables that torchrun sets."""
        import torch.distributed as dist

        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
            is_master=self.rank == 0 and not by_torchrun, timeout=_FOREVER, wait_for_workers=False,
        )  # fmt: skip
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"datacomp_flyt/ranks/{attempt}", store
        )
        self._calls = 0

    def call(self, name: str) -> dict[str, str]:
        """Rank 0: call the others to a step; the environment in which to run it."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self._say(f"{port} {name}")
        return self._environment(port)

    def dismiss(self) -> None:
        """Rank 0: nothing is left to do."""
        self._say("")
        # the store may be this process's own
        self._store.wait([f"left {rank}" for rank in range(1, self.size)])

    def calls(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Other ranks: the steps that rank 0 calls to, until there are no more."""
        while said := self._store.get(str(self._calls)).decode():
            self._calls += 1
            port, name = said.split(" ", 1)
            yield name, self._environment(int(port))
        self._store.set(f"left {self.rank}", "")

    def _say(self, what: str) -> None:
        self._store.set(str(self._calls), what)
        self._calls += 1

    @staticmethod
    def _environment(port: int) -> dict[str, str]:
        # torchrun's own store has been used by the step before
        ours = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        return {**os.environ, **ours}


def ranks_of_torchrun() -> Ranks | None:
    """This process's, or None where it has been started by itself."""
    return Ranks() if {"RANK", "WORLD_SIZE", "MASTER_PORT"} <= os.environ.keys() else None


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what torchrun says in it, for work of one process."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _NAMES and not name.startswith("TORCHELASTIC_")
    }
