from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datacomp_flyt.engines.engine import WorkerLost
from datacomp_flyt.engines.ray_cluster import RayEngine
from datacomp_flyt.errors import InputError
from tests.engines import work
from tests.engines.contract import Contract, wait_until_ended
from tests.engines.two_nodes import two_nodes

ray = pytest.importorskip("ray")


@pytest.fixture(scope="class")
def local_ray() -> Iterator[None]:
    """Ray that the caller initialised, with a fake GPU."""
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("local_ray")
class TestRayEngine(Contract):
    @pytest.fixture
    def engine(self) -> Iterator[RayEngine]:
        yield RayEngine(None, 2, "cpu")
        assert ray.is_initialized()

    def test_one_worker_for_each_cpu(self, tmp_path: Path) -> None:
        items = [work.Marked(tmp_path, 2)] * 8
        outcomes = RayEngine(None, None, "cpu").run(work.Make(work.pid_and_device), items)
        assert len({outcome.result[0] for outcome in outcomes}) == 2

    def test_a_worker_without_a_place_blocks_none(self) -> None:
        outcomes = RayEngine(None, 3, "cpu").run(work.Make(work.square), range(20))
        assert sorted(outcome.result for outcome in outcomes) == [n * n for n in range(20)]

    @pytest.mark.parametrize("device", ["auto", "cuda"])
    def test_one_worker_for_each_gpu(self, device: str, tmp_path: Path) -> None:
        items = [work.Marked(tmp_path, 1)] * 5
        outcomes = list(RayEngine(None, 2, device).run(work.Make(work.pid_and_device), items))
        assert len({outcome.result for outcome in outcomes}) == 1
        assert outcomes[0].result[1] == "cuda:0"


def test_ray_of_the_engine_ends_with_the_run(tmp_path: Path) -> None:
    engine = RayEngine(None, 1, "auto")
    items = [work.Marked(tmp_path, 1)] * 3
    outcomes = list(engine.run(work.Make(work.pid_and_device), items))
    ((pid, device),) = {outcome.result for outcome in outcomes}
    assert device == "cpu"
    assert not ray.is_initialized()
    wait_until_ended([pid], 10)


def test_without_a_gpu() -> None:
    with pytest.raises(InputError, match="--device cuda: the Ray cluster has no GPU"):
        list(RayEngine(None, 1, "cuda").run(work.Make(work.square), [1]))
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "a wrong one"])
def test_no_cluster_at_the_address(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=f"--ray_address {address}: no Ray cluster"):
        list(RayEngine(address, 1, "cpu").run(work.Make(work.square), [1]))
    assert time.monotonic() - started < 15


def test_no_workers() -> None:
    with pytest.raises(InputError, match="--num_workers is 0"):
        RayEngine(None, 0, "cpu")


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray is not installed: pip install .*\[ray\]'"):
        RayEngine(None, 1, "cpu")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a node's processes in /proc")
def test_a_lost_node_costs_its_items_only(tmp_path: Path) -> None:
    items = [work.Marked(tmp_path, number) for number in range(20)]
    seen = set()
    lost = []
    finished = []
    with two_nodes() as nodes:
        engine = RayEngine(nodes.address, None, "cpu")
        for outcome in engine.run(work.Make(work.node), items):
            if outcome.error is not None:
                assert isinstance(outcome.error, WorkerLost)
                lost.append(outcome.item)
                continue
            number, node = outcome.result
            finished.append(number)
            if node == "second" and node not in seen:
                nodes.kill_second_node()
            seen.add(node)
        assert seen == {"head", "second"}
        assert lost
        again = list(engine.run(work.Make(work.node), lost))
    assert {outcome.result[1] for outcome in again} == {"head"}
    finished += [outcome.result[0] for outcome in again]
    assert sorted(finished) == list(range(20))
