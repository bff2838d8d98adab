"""The lines on stderr about shards that failed, and the exit code."""

from __future__ import annotations

import signal

import pytest

from datacomp_flyt.engines.engine import WorkerLost
from datacomp_flyt.engines.flags import report_failures
from datacomp_flyt.engines.processes import exit_text
from datacomp_flyt.errors import InputError, NothingUsable

KILLED = WorkerLost(f"worker process 7 ended: {exit_text(-signal.SIGKILL)}")
TERMINATED = WorkerLost(f"worker process 7 ended: {exit_text(-signal.SIGTERM)}")
DAMAGED = InputError("b.npz cannot be read as npz")
MEMORY_HINT = "; fewer --num_workers take less memory"
CORRECT = "correct the files or the flags that the lines above name and run the command again"


def reported(
    capsys: pytest.CaptureFixture[str],
    num_finished: int = 3,
    num_workers: int = 2,
    **failed: Exception,
) -> tuple[int, list[str]]:
    code = report_failures(failed, "score", num_finished=num_finished, num_workers=num_workers)
    return code, capsys.readouterr().err.splitlines()


def test_a_killed_worker(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to correct in the input, and memory may have run out."""
    code, lines = reported(capsys, a=KILLED)
    assert code == 1
    assert lines == [
        f"score: shard a failed: {KILLED}{MEMORY_HINT}",
        "score: 1 shard failed and the others are done; run the same command again",
    ]
    _, lines = reported(capsys, a=TERMINATED)
    assert lines[0] == f"score: shard a failed: {TERMINATED}"


def test_one_worker_cannot_be_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = reported(capsys, num_workers=1, a=KILLED)
    assert lines[0] == f"score: shard a failed: {KILLED}"


def test_an_error_of_a_scorer_has_its_type_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = TypeError("object of type 'NoneType' has no len()")
    trace = 'File "shards.py", line 3, in run\n  File "/my/words.py", line 50, in score_rows'
    error.__cause__ = RuntimeError(f"in the worker:\n{trace}\n    len(None)")
    _, lines = reported(capsys, a=error)
    assert lines[0] == f"score: shard a failed: TypeError: {error} (/my/words.py:50)"


def test_damaged_shards(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = reported(capsys, a=KILLED, b=DAMAGED)
    assert code == 1
    assert lines[1:] == [
        f"score: shard b failed: {DAMAGED}",
        f"score: 2 shards failed and the others are done; {CORRECT}",
    ]


def test_no_shard_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = reported(capsys, num_finished=0, a=DAMAGED, b=DAMAGED)
    assert lines[-1] == f"score: 2 shards failed and none is finished; {CORRECT}"


def test_a_file_that_quotes_a_kill_says_nothing_about_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, lines = reported(capsys, a=InputError("a.txt has the line: killed (SIGKILL)"))
    assert MEMORY_HINT not in lines[0]


def test_nothing_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert reported(capsys, a=NothingUsable("no sample"))[0] == 2
    assert reported(capsys) == (0, [])
