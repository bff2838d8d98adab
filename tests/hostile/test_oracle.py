"""The fuzzer's oracle reports faulty readers and goes on after each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.hostile.oracle import Worker

MISBEHAVING = "tests.hostile.misbehaving"


@pytest.mark.timeout(300)
def test_every_fault_is_reported(tmp_path: Path) -> None:
    expected = {
        "busy": "hang: no answer in 1 s of the processor",
        "crashing": "crash: exit code -6",
        "greedy": "memory: 0.3 GB more",
        "raising": "error: KeyError at misbehaving.py",
        "vague": "a message that does not name the file",
        "wordy": "wrong: a message of 2001 characters",
        "wrong": "wrong: no",
    }
    with Worker(MISBEHAVING, seconds=1) as worker:
        for name, fault in expected.items():
            worker.warm("fine", tmp_path)
            assert fault in str(worker.run(name, tmp_path).fault), name
        worker.warm("fine", tmp_path)
        assert worker.run("fine", tmp_path).fault is None


def test_the_stack_of_a_reader_that_waits_is_reported(tmp_path: Path) -> None:
    with Worker(MISBEHAVING, patience=5) as worker:
        worker.warm("fine", tmp_path)
        fault = str(worker.run("waiting", tmp_path).fault)
    assert fault.startswith("hang: no answer in 5 s of the clock")
    assert "in _waiting" in fault
