"""Tests of all engines; the tests of each engine inherit them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from datacomp_flyt.engines.engine import Engine, WorkerLost
from datacomp_flyt.errors import InputError
from tests.engines import work


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_ended(pids: list[int], seconds: float) -> None:
    """Fail the test if one of the processes lives longer."""
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < end, f"still alive: {left}"
        time.sleep(0.05)


def pids_in(folder: Path, number: int, seconds: float = 30) -> list[int]:
    """Wait for so many processes to leave a mark; return them."""
    end = time.monotonic() + seconds
    while len(pids := [int(mark.name[3:]) for mark in folder.glob("pid*")]) < number:
        assert time.monotonic() < end, f"{len(pids)} workers of {number}"
        time.sleep(0.05)
    return pids


class Contract:
    """Subclasses provide the fixture `engine`, with two workers on the CPU."""

    def test_every_item_has_one_result(self, engine: Engine) -> None:
        outcomes = list(engine.run(work.Make(work.square), range(30)))
        assert sorted(outcome.item for outcome in outcomes) == list(range(30))
        assert all(outcome.result == outcome.item**2 for outcome in outcomes)
        assert all(outcome.error is None for outcome in outcomes)

    @pytest.mark.parametrize("number", [0, 1])
    def test_fewer_items_than_workers(self, engine: Engine, number: int) -> None:
        outcomes = list(engine.run(work.Make(work.square), range(number)))
        assert [outcome.result for outcome in outcomes] == list(range(number))

    def test_two_workers_share_the_items(self, engine: Engine, tmp_path: Path) -> None:
        items = [work.Marked(tmp_path, 2)] * 8
        outcomes = list(engine.run(work.Make(work.pid_and_device), items))
        pids = {outcome.result[0] for outcome in outcomes}
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert {outcome.result[1] for outcome in outcomes} == {"cpu"}
        wait_until_ended(list(pids), 10)

    def test_results_are_those_of_this_process(self, engine: Engine) -> None:
        outcomes = list(engine.run(work.Make(work.project), range(6)))
        with threadpool_limits(1):
            for outcome in outcomes:
                expected = work.project("cpu", outcome.item)
                assert outcome.result.tobytes() == expected.tobytes()

    def test_large_arrays_both_ways(self, engine: Engine) -> None:
        numbers = 12_500_000  # 100 MB
        (outcome,) = engine.run(work.Make(work.ramp), [numbers])
        np.testing.assert_array_equal(outcome.result, np.arange(numbers, dtype=np.float64))
        outcome.result[0] = 1.0  # writable, as any result
        (outcome,) = engine.run(work.Make(work.total), [outcome.result])
        assert outcome.result == numbers * (numbers - 1) / 2 + 1

    def test_an_error_is_the_outcome_of_its_item(self, engine: Engine) -> None:
        errors = {o.item: o.error for o in engine.run(work.Make(work.fail), range(8))}
        assert errors[0] is None
        assert errors[4] is None
        assert type(errors[5]) is ValueError
        assert errors[5].args == ("item 5", 5)
        assert "in fail" in str(errors[5].__cause__)
        assert type(errors[6]) is InputError
        assert str(errors[6]) == "item 6 has no rows"

    def test_an_error_that_cannot_be_pickled(self, engine: Engine) -> None:
        errors = {o.item: o.error for o in engine.run(work.Make(work.fail), range(8))}
        assert type(errors[3]) is RuntimeError
        assert str(errors[3]) == "UnpicklableError: item row 3"

    def test_a_result_that_cannot_be_pickled(self, engine: Engine) -> None:
        outcomes = {o.item: o for o in engine.run(work.Make(work.unpicklable), range(4))}
        assert outcomes[2].result == 2
        assert outcomes[1].error is not None
        assert "pickle" in str(outcomes[1].error)

    def test_errors_of_make_are_raised(self, engine: Engine) -> None:
        with pytest.raises(InputError, match=r"m\.pt is not a model"):
            list(engine.run(work.refuse, range(4)))
        with pytest.raises(KeyError, match="weights"):
            list(engine.run(work.break_down, range(4)))

    def test_workers_that_end_before_they_have_loaded(self, engine: Engine) -> None:
        with pytest.raises(InputError, match=r"3 times in a row .* --num_workers"):
            list(engine.run(work.end, range(4)))

    def test_a_worker_that_ends_while_it_loads_costs_nothing(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        outcomes = list(engine.run(work.EndOnce(tmp_path), range(4)))
        assert sorted(outcome.result for outcome in outcomes) == [0, 1, 4, 9]

    def test_a_killed_worker_costs_its_item_only(self, engine: Engine, tmp_path: Path) -> None:
        items = [work.Marked(tmp_path, number) for number in range(12)]
        outcomes = list(engine.run(work.Make(work.killed_once), items))
        assert sorted(outcome.item.number for outcome in outcomes) == list(range(12))
        lost = [outcome.item for outcome in outcomes if isinstance(outcome.error, WorkerLost)]
        assert sorted(item.number for item in lost) == [0, 5, 10]
        assert all(o.result == o.item.number for o in outcomes if o.error is None)
        again = list(engine.run(work.Make(work.killed_once), lost))
        assert sorted(outcome.result for outcome in again) == [0, 5, 10]

    def test_closing_ends_the_workers(self, engine: Engine, tmp_path: Path) -> None:
        items = [work.Marked(tmp_path, number) for number in range(5)]
        outcomes = engine.run(work.Make(work.sleep_when_two_work), items)
        assert next(outcomes).result == 0
        pids = pids_in(tmp_path, 2)
        started = time.monotonic()
        outcomes.close()
        wait_until_ended(pids, 5)
        assert time.monotonic() - started < 5

    def test_one_thread_in_each_worker(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("torch")
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        (outcome,) = engine.run(work.Make(work.threads), [None])
        assert outcome.result[0] == 1
        assert outcome.result[1]
        assert set(outcome.result[1]) == {1}
