"""A program that torchrun has started several times: rank 0 runs it, and calls the others to help.

Of a list of steps only some are work for all ranks, such as a training. The others wait until rank
0 calls them by a step's name; each such step gets a port of its own for what its processes tell
each other.
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
class Place:
    """The rank, the number of ranks and the address of rank 0, from torchrun's variables."""

    rank: int
    size: int
    address: str
    port: int

    def meet(self, purpose: str) -> Any:
        """Return a `torch.distributed` store that all ranks have joined.

        Args:
            purpose: a prefix of the store's keys; ranks meet once for each purpose.

        Raises:
            InputError: a rank does not join in time, or rank 0 cannot be reached.
        """
        import torch.distributed as dist

        by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        here = f"rank {self.rank} of {self.size}"
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                self.address, self.port, is_master=self.rank == 0 and not by_torchrun,
                timeout=_LIMIT, wait_for_workers=False,
            )  # fmt: skip
        except Exception as error:  # torch raises errors of several types
            raise InputError(
                f"{here} cannot meet the others at MASTER_ADDR {self.address}, MASTER_PORT "
                f"{self.port} ({first_line(error)}): see that rank 0 runs there and the port is "
                "free, or start with torchrun"
            ) from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        joined = dist.PrefixStore(  # type: ignore[attr-defined]
            f"datacomp_flyt/{purpose}/{attempt}", store
        )
        joined.set(f"here {self.rank}", "")
        end = time.monotonic() + _LIMIT.total_seconds()
        for other in range(self.size):
            left = max(end - time.monotonic(), 0.001)
            try:
                joined.wait([f"here {other}"], timedelta(seconds=left))
            except Exception as error:
                raise InputError(
                    f"{here} waited for rank {other}, which did not join ({first_line(error)}): "
                    f"start WORLD_SIZE = {self.size} processes, as torchrun does"
                ) from None
        return joined


def place_of_torchrun() -> Place | None:
    """The place of this process; None if it was not started by torchrun.

    Raises:
        InputError: variables of torchrun are missing or invalid.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    wanted = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ.get(name, "") for name in wanted}
    missing = [name for name, value in given.items() if not value]
    numbers = {name: value for name, value in given.items() if name != "MASTER_ADDR"}
    wrong = [name for name, value in numbers.items() if not value.isdecimal()]
    if not missing and not wrong:
        rank, size, port = map(int, numbers.values())
        if rank < size and 0 < port < 2**16:
            return Place(rank, size, given["MASTER_ADDR"], port)
        wrong = ["RANK"] if rank >= size else ["MASTER_PORT"]
    raise InputError(
        f"RANK is {given['RANK']!r} and WORLD_SIZE {given['WORLD_SIZE']!r}, as of one process of "
        f"several, but {' and '.join(missing or wrong)} {'missing' if missing else 'wrong'}: start "
        "with torchrun, or unset them for one process"
    )


class Ranks:
    """This process among those that torchrun has started.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
    """

    def __init__(self, place: Place) -> None:
        self.rank, self.size = place.rank, place.size
        self._store = place.meet("ranks")
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
        # the store may live in this process, so wait until the others have left; their errors
        # no longer matter
        with contextlib.suppress(RuntimeError):
            self._store.wait([f"left {rank}" for rank in range(1, self.size)], _LIMIT)

    def calls(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Other ranks: the steps that rank 0 calls to, until there are no more."""
        while said := self._next_call():
            port, name = said.split(" ", 1)
            self._calls += 1
            yield name, self._environment(int(port))
        self._store.set(f"left {self.rank}", "")

    def _next_call(self) -> str:
        # The step that rank 0 does alone may take days. Where rank 0 ends, torchrun ends the
        # others, and without torchrun the store is rank 0's own, and fails.
        self._store.wait([str(self._calls)], _FOREVER)
        return str(self._store.get(str(self._calls)).decode())

    def _say(self, what: str) -> None:
        self._store.set(str(self._calls), what)
        self._calls += 1

    @staticmethod
    def _environment(port: int) -> dict[str, str]:
        # torchrun's own store has been used by the step before
        ours = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        return {**os.environ, **ours}


def ranks_of_torchrun() -> Ranks | None:
    """The ranks as seen from this process; None if it was not started by torchrun.

    Raises:
        InputError: see `place_of_torchrun` and `Place.meet`.
    """
    place = place_of_torchrun()
    return None if place is None else Ranks(place)


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what torchrun says in it, for work of one process."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _NAMES and not name.startswith("TORCHELASTIC_")
    }
