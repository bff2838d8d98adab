"""Mutants of every reader's valid input; see `fuzz` for more of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.hostile.fuzz import fuzz, others_of
from tests.hostile.oracle import Worker
from tests.hostile.readers import READERS

FEW, MANY = range(4), range(4, 1000)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as made:
        yield made


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return others_of(tmp_path_factory.mktemp("others"))


def run(name: str, seeds: range, folder: Path, worker: Worker, others: list[bytes]) -> None:
    found = [*fuzz(name, seeds, folder / "mutants", worker, others)]
    assert not found, "\n".join(f"{each.reader} --seed {each.seed}: {each.what}" for each in found)


@pytest.mark.parametrize("name", READERS)
def test_few_mutants(tmp_path: Path, worker: Worker, others: list[bytes], name: str) -> None:
    run(name, FEW, tmp_path, worker, others)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutants(tmp_path: Path, worker: Worker, others: list[bytes], name: str) -> None:
    run(name, MANY, tmp_path, worker, others)
