from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.errors import InputError
from tests.conftest import REPOSITORY
from tests.engines import work
from tests.engines.contract import Contract, alive, pids_in, wait_until_ended

STDIN_SCRIPT = """
from datacomp_flyt.engines.processes import ProcessEngine
from tests.engines import work
print(sorted(o.result for o in ProcessEngine(2, "cpu").run(work.Make(work.square), range(5))))
print("torch" in __import__("sys").modules, __file__)
"""
UNGUARDED_SCRIPT = """
from datacomp_flyt.engines.processes import ProcessEngine
from tests.engines import work
print(list(ProcessEngine(1, "cpu").run(work.Make(work.square), range(5))))
"""


class TestProcessEngine(Contract):
    @pytest.fixture
    def engine(self) -> ProcessEngine:
        return ProcessEngine(2, "cpu")


@contextlib.contextmanager
def driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.engines.work", str(folder)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_killed_driver_leaves_no_worker(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        pids = pids_in(tmp_path, 2)
        process.kill()
        process.communicate(timeout=30)  # ends when no worker has its stderr any more
        wait_until_ended(pids, 10)


def test_ctrl_c_ends_all_at_once(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        pids = pids_in(tmp_path, 2)
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.5)
        assert all(alive(pid) for pid in pids)  # it is the driver's
        os.killpg(process.pid, signal.SIGINT)  # to the workers too, as of a terminal
        _, errors = process.communicate(timeout=30)
        wait_until_ended(pids, 1)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "leaked" not in errors


def test_from_a_script_of_stdin() -> None:
    done = subprocess.run(
        [sys.executable, "-"],
        input=STDIN_SCRIPT,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "[0, 1, 4, 9, 16]\nFalse <stdin>\n"


def test_a_script_that_starts_workers_when_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED_SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert "every worker ended before it had loaded, 3 times in a row" in last
    assert 'a script has to start workers below `if __name__ == "__main__":`' in last


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    (outcome,) = ProcessEngine(1, "cpu").run(work.Make(work.square), [3])
    assert outcome.result == 9
    assert dict(os.environ) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == blocked


def test_one_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = pytest.importorskip("torch").cuda
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    assert ProcessEngine(5, "cpu").devices == ["cpu"] * 5
    for given in ("auto", "cuda"):
        folder = tmp_path / given
        folder.mkdir()
        engine = ProcessEngine(5, given)
        outcomes = list(engine.run(work.Make(work.pid_and_device), [work.Marked(folder, 2)] * 8))
        workers = {outcome.result for outcome in outcomes}
        assert sorted(device for _, device in workers) == ["cuda:0", "cuda:1"]


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = pytest.importorskip("torch").cuda
    monkeypatch.setattr(cuda, "device_count", lambda: 0)
    assert ProcessEngine(2, "auto").devices == ["cpu", "cpu"]
    with pytest.raises(InputError, match="--device cuda"):
        ProcessEngine(2, "cuda")


def test_no_workers() -> None:
    with pytest.raises(InputError, match="--num_workers is 0"):
        ProcessEngine(0, "cpu")
