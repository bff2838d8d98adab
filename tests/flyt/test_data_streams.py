"""Batches are independent of processes and workers; epochs; the end of workers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("webdataset")

from datacomp_flyt.flyt.data import UpstreamBatch, upstream_loader
from datacomp_flyt.flyt.stream_settings import StreamSettings
from datacomp_flyt.flyt.streams import StreamLoader, concatenate, seeded, shuffled
from tests.conftest import REPOSITORY, refusal
from tests.flyt.tars import (
    augmented,
    features_of,
    settings_of,
    tokenize,
    write_pairs,
    write_tar,
)

STEPS = 3
FEATURES = features_of(range(0, 40, 2))  # half of the examples are skipped


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pairs(tmp_path_factory.mktemp("shards"))


def batches(shards: list[str], settings: StreamSettings, steps: int = STEPS) -> list[UpstreamBatch]:
    """Return global batches, the concatenated batches of all ranks."""
    actual = []
    for rank in range(settings.world_size):
        own = replace(settings, rank=rank)
        with upstream_loader(shards, tokenize, own, FEATURES) as loader:
            actual.append(list(itertools.islice(loader, steps)))
    return [concatenate(parts) for parts in zip(*actual, strict=True)]


def same(one: UpstreamBatch, other: UpstreamBatch) -> bool:
    return one.skipped == other.skipped and all(
        torch.equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(one)
        if field.name != "skipped"
    )


SETTINGS = settings_of(16, 4, transform=augmented)


@pytest.fixture(scope="module")
def expected(shards: list[str]) -> list[UpstreamBatch]:
    return batches(shards, SETTINGS)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batches_do_not_depend_on_processes_and_workers(
    shards: list[str], expected: list[UpstreamBatch], world_size: int, num_workers: int
) -> None:
    actual = batches(shards, replace(SETTINGS, world_size=world_size, num_workers=num_workers))
    assert all(map(same, actual, expected))
    assert actual[0].images.shape == (16, 3, 10, 10)
    assert actual[0].skipped["uid not in the feature table"] > 0


def test_shuffle_seed_and_epoch_decide(shards: list[str], expected: list[UpstreamBatch]) -> None:
    again, later, other = (
        batches(shards, replace(SETTINGS, **changes)) for changes in ({}, {"epoch": 1}, {"seed": 1})
    )
    assert all(map(same, again, expected))
    for batch in (later[0], other[0]):
        assert not torch.equal(batch.texts, expected[0].texts)
    resumed = batches(shards, replace(SETTINGS, epoch=1, num_workers=2))
    assert all(map(same, resumed, later))


def test_streams_differ_and_alternate(expected: list[UpstreamBatch]) -> None:
    parts = expected[0].texts.reshape(4, 4).tolist()
    assert len({tuple(part) for part in parts}) == 4
    parts = expected[0].images[:, 0, 0, 0].reshape(4, 4).tolist()
    assert len({tuple(part) for part in parts}) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_trainers_generators_are_not_advanced(shards: list[str], num_workers: int) -> None:
    def state() -> tuple[object, ...]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)

    before = state()
    batches(shards, replace(SETTINGS, num_workers=num_workers))
    assert state() == before


def test_seeded_decides_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        numpy_draw = float(np.random.random())  # noqa: NPY002
        return torch.rand(1).item(), random.random(), numpy_draw

    with seeded(2**62 + 7):
        first = draw()
    with seeded(2**62 + 7):
        assert draw() == first
    with seeded(5):
        assert draw() != first


def test_shuffled_keeps_items_and_mixes_them() -> None:
    actual = list(itertools.islice(shuffled(itertools.count(), 20, 10, random.Random(0)), 3000))
    assert len(set(actual)) == 3000
    assert max(actual[0:1]) < 10
    # after n outputs at most 10 + 2 n inputs were read, and n + 20 once the buffer is full
    assert all(item <= min(10 + 2 * place, place + 20) for place, item in enumerate(actual))
    assert actual != sorted(actual)


def test_a_buffer_of_one_keeps_the_order() -> None:
    actual = itertools.islice(shuffled(iter(range(100)), 0, 1000, random.Random(0)), 10)
    assert list(actual) == list(range(10))


# ------------------------------------------------------------------------------- the loader


@pytest.mark.parametrize(
    ("streams", "world_size", "workers", "used"),
    [(8, 1, 3, 2), (8, 2, 9, 4), (6, 1, 4, 3), (7, 1, 3, 1), (4, 4, 2, 1), (4, 1, 0, 0)],
)
def test_workers_divide_the_streams(streams: int, world_size: int, workers: int, used: int) -> None:
    loader = StreamLoader(lambda stream: None, streams, 0, world_size, workers)  # type: ignore
    assert loader.num_workers == used


def test_processes_divide_the_streams_and_streams_the_batch(shards: list[str]) -> None:
    settings = replace(SETTINGS, world_size=3)
    assert "--num_streams 4" in refusal(upstream_loader, shards, tokenize, settings)
    settings = replace(SETTINGS, batch_size=18)
    assert "batch of 18" in refusal(upstream_loader, shards, tokenize, settings)


def test_an_error_in_a_worker_has_the_same_message(tmp_path: Path) -> None:
    shards = [str(write_tar(tmp_path / "0.tar", [{"txt": b"alone"}]))]

    def message(num_workers: int) -> str:
        settings = replace(SETTINGS, num_workers=num_workers)
        with upstream_loader(shards, tokenize, settings) as loader:
            return refusal(next, iter(loader))

    assert message(2) == message(0)
    assert "no image: 1" in message(0)


def test_closing_ends_the_workers(shards: list[str]) -> None:
    loader = upstream_loader(shards, tokenize, replace(SETTINGS, num_workers=2), FEATURES)
    iterator = iter(loader)
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    again = iter(loader)  # starts again, and ends the workers of the first iterator
    assert len(multiprocessing.active_children()) == 0
    assert same(next(again), batches(shards, SETTINGS, 1)[0])
    loader.close()
    loader.close()
    assert len(multiprocessing.active_children()) == 0
    with pytest.raises(StopIteration):
        next(iterator)


PARENT = """
import multiprocessing, sys, time
from dataclasses import replace
from datacomp_flyt.flyt.data import upstream_loader
from tests.flyt.tars import settings_of, tokenize
settings = replace(settings_of(16, 4), num_workers=2)
batches = iter(upstream_loader(sys.argv[1:], tokenize, settings))
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def test_workers_end_with_a_killed_parent(shards: list[str]) -> None:
    command = [sys.executable, "-c", PARENT, *shards]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, workers))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_to_moves_tensors_and_leaves_the_rest(expected: list[UpstreamBatch]) -> None:
    moved = replace(expected[0], features=None).to("meta")
    assert moved.images.device.type == moved.texts.device.type == "meta"
    assert moved.features is None
    assert moved.skipped == expected[0].skipped
