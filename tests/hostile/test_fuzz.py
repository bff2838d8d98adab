"""Every reader on mutants of its valid file; `python -m tests.hostile.fuzz` tries more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.hostile.fuzz import files_of_others, fuzz
from tests.hostile.oracle import Worker
from tests.hostile.readers import READERS

FEW, MANY = range(4), range(4, 500)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return files_of_others(tmp_path_factory.mktemp("others"))


@pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_mutants(
    tmp_path: Path, worker: Worker, others: list[bytes], name: str, seeds: range
) -> None:
    findings = list(fuzz(name, seeds, tmp_path / "mutants", worker, others))
    assert findings == []
