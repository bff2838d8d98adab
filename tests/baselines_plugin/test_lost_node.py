"""If a Ray node is killed while it sorts a pool, only the item that it worked on is repeated."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datacomp_flyt.engines.engine import Outcome, T, TaskFactory, WorkerLost
from tests.baselines_plugin.job import Job
from tests.baselines_plugin.large_pool import M_FLYT, POOL, outputs, small_slices
from tests.engines.two_nodes import TwoNodes, two_nodes

pytest.importorskip("ray")
from datacomp_flyt.engines.ray_cluster import RayEngine

SECONDS = 60


class Hold(NamedTuple):
    """Wraps a task factory: the second node blocks on one item, before or after its work."""

    make: TaskFactory
    mark: Path
    after: bool

    def __call__(self, device: str) -> Callable[[Any], Any]:
        return Held(self, self.make(device))


class Held(NamedTuple):
    hold: Hold
    function: Callable[[Any], Any]

    def __call__(self, item: Any) -> Any:
        mark, end = self.hold.mark, time.monotonic() + SECONDS
        if os.environ["TWO_NODES"].endswith("second") and not mark.exists():
            if self.hold.after:
                self.function(item)
            mark.write_text(item[0])
            time.sleep(10 * SECONDS)
        while not mark.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return self.function(item)


class LosesNode(RayEngine):
    """Kills the second node in the first run (partitioning) or in the second run (sorting).

    Attributes:
        outcomes: for each run, the item and the error of each outcome.
    """

    def __init__(self, nodes: TwoNodes, killed_run: int, mark: Path, after: bool) -> None:
        super().__init__(nodes.address, None, "cpu")
        self.outcomes: list[list[tuple[str, Exception | None]]] = []
        self._nodes, self._killed_run, self._mark, self._after = nodes, killed_run, mark, after

    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        self.outcomes.append([])
        killer = threading.Thread(target=self._kill)
        if len(self.outcomes) == self._killed_run:
            make = Hold(make, self._mark, self._after)
            killer.start()
        for outcome in super().run(make, items):
            self.outcomes[-1].append((outcome.item[0], outcome.error))  # type: ignore[index]
            yield outcome
        if killer.ident is not None:
            killer.join()

    def _kill(self) -> None:
        end = time.monotonic() + SECONDS
        while not self._mark.exists() and time.monotonic() < end:
            time.sleep(0.02)
        self._nodes.kill_second_node()


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a node's processes in /proc")
@pytest.mark.parametrize(
    ("killed_run", "after"),
    [(1, False), (2, True)],
    ids=["partitioning", "sorted but not reported"],
)
def test_complete_and_byte_equal(
    nodes: TwoNodes, tmp_path: Path, killed_run: int, after: bool
) -> None:
    job = Job(POOL, tmp_path).write(9, 4)
    expected, _ = outputs(job, tmp_path / "memory", *M_FLYT)
    mark = tmp_path / "mark"
    engine = LosesNode(nodes, killed_run, mark, after)
    with small_slices(engine):
        flags = (*M_FLYT, "--work_dir", tmp_path / "work", "--engine", "ray")
        actual, _ = outputs(job, tmp_path / "ray", *flags)  # Ray also prints that it lost a node
    assert actual == expected
    outcomes = [outcome for run in engine.outcomes for outcome in run]
    lost = [(name, type(error)) for name, error in outcomes if error is not None]
    assert lost == [(mark.read_text(), WorkerLost)]
    attempts = Counter(name for name, _ in outcomes)
    assert {name for name, count in attempts.items() if count > 1} == {mark.read_text()}
    assert sum(name.startswith("bucket") for name in attempts) == 14
