"""Two runs of one output: the second is refused, and what a killed one leaves is no obstacle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from datacomp_flyt.engines import locks
from datacomp_flyt.engines.locks import one_run
from tests.conftest import REPOSITORY, refusal

HOLD = """
import sys, time
from datacomp_flyt.engines.locks import one_run
with one_run(*sys.argv[1:]):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(*places: Path) -> subprocess.Popen[str]:
    """A process that holds locks by now."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, places)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def take(*places: Path) -> None:
    with one_run(*places):
        pass


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_second_run_is_refused_until_the_first_is_killed(tmp_path: Path, kind: str) -> None:
    place = tmp_path if kind == "folder" else tmp_path / "subset.npy"
    first = hold(place)
    try:
        said = refusal(take, place)
        assert str(place) in said
        assert f"process {first.pid} on {socket.gethostname()}" in said
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".lock")
    take(place)
    assert list(tmp_path.iterdir()) == []


def test_a_second_one_in_the_same_process(tmp_path: Path) -> None:
    with one_run(tmp_path), one_run(tmp_path / "other.npy"):
        assert "is being written by another run" in refusal(take, tmp_path)
        # the second place is taken, so the first is given back
        assert "other.npy" in refusal(take, tmp_path / "free.npy", tmp_path / "other.npy")
        take(tmp_path / "free.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), one_run(tmp_path):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_run_has_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ends between our opening of its file and our locking of it."""
    (tmp_path / ".lock").write_text("process 1 on another")
    flock, calls = locks.fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(handle)
        flock(handle, how)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with one_run(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_filesystem_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    take(tmp_path)
    assert f"{tmp_path}: this filesystem keeps no locks" in capsys.readouterr().err


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    assert str(tmp_path / "no") in refusal(take, tmp_path / "no" / "subset.npy")


def _child(pipe: multiprocessing.connection.Connection) -> None:
    pipe.send("begun")
    pipe.recv()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_that_lives_on_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with one_run(tmp_path):
        child = context.Process(target=_child, args=(theirs,))
        child.start()
        assert ours.recv() == "begun"
        assert "is being written" in refusal(take, tmp_path)  # its copy is not ours
    assert child.is_alive()
    take(tmp_path)
    ours.send("end")
    child.join()
    assert child.exitcode == 0
