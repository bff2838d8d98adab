"""The second run of an output is refused, and files of a killed run do no harm."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from datacomp_flyt.files import locks
from datacomp_flyt.files.locks import lock_outputs
from tests.conftest import REPOSITORY, refusal
from tests.files.lock_holder import hold, take


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
    assert left.name.startswith(".")
    assert left.name.endswith(".lock")
    take(place)
    assert list(tmp_path.iterdir()) == []


def test_a_second_one_in_the_same_process(tmp_path: Path) -> None:
    with lock_outputs(tmp_path), lock_outputs(tmp_path / "other.npy"):
        assert "is being written by another run" in refusal(take, tmp_path)
        # the second place is taken, so the first is given back
        assert "other.npy" in refusal(take, tmp_path / "free.npy", tmp_path / "other.npy")
        take(tmp_path / "free.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_outputs(tmp_path):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_run_has_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ends after its file is opened here and before it is locked."""
    (tmp_path / ".lock").write_text("process 1 on another")
    flock, calls = locks.fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(handle)
        flock(handle, how)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with lock_outputs(tmp_path):
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


def test_a_filesystem_where_a_file_is_another_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some FUSE and CIFS filesystems number files anew at each look."""
    monkeypatch.setattr(locks, "_is_same", lambda handle, path: False)
    take(tmp_path)
    assert capsys.readouterr().err.count("keeps no locks") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_locks(tmp_path: Path) -> None:
    """Windows has neither `fcntl` nor forks."""
    program = """
import os, sys
sys.modules["fcntl"] = None
del os.fork, os.register_at_fork
from datacomp_flyt.files.locks import lock_outputs
with lock_outputs(sys.argv[1]):
    print("done")
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == "done\n"
    assert f"{tmp_path}: this filesystem keeps no locks" in found.stderr


@pytest.fixture
def of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A read-only lock file in a writable folder."""
    path, real = tmp_path / ".lock", os.open
    path.write_text("process 1 on another")
    theirs = path.stat().st_ino

    def denied(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR and path.exists() and path.stat().st_ino == theirs:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, flags, mode)

    monkeypatch.setattr(locks.os, "open", denied)
    return path


def test_what_a_killed_run_of_somebody_else_left(of_somebody_else: Path) -> None:
    with lock_outputs(of_somebody_else.parent):
        assert of_somebody_else.read_text().startswith(f"process {os.getpid()} on ")
        assert "is being written by another run" in refusal(take, of_somebody_else.parent)
    assert not of_somebody_else.exists()


def test_a_run_of_somebody_else(of_somebody_else: Path) -> None:
    with of_somebody_else.open() as file:
        locks.fcntl.flock(file, locks.fcntl.LOCK_EX)
        said = refusal(take, of_somebody_else.parent)
    assert "is being written by another run (process 1 on another)" in said
    assert f"remove {of_somebody_else}" in said
    assert of_somebody_else.read_text() == "process 1 on another"


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
    with lock_outputs(tmp_path):
        child = context.Process(target=_child, args=(theirs,))
        child.start()
        assert ours.recv() == "begun"
        assert "is being written" in refusal(take, tmp_path)  # its copy is not ours
    assert child.is_alive()
    take(tmp_path)
    ours.send("end")
    child.join()
    assert child.exitcode == 0


def test_what_somebody_else_left_and_nobody_may_remove(
    of_somebody_else: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", denied)
    said = refusal(take, of_somebody_else.parent)
    assert f"{of_somebody_else} belongs to another user" in said
