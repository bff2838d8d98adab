"""Side steps, and steps of several ranks that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datacomp_flyt.steps import Step
from tests.conftest import REPOSITORY

RECORDER = """
import os, sys, time
text, *more = sys.argv[1:]
if "sum" in more:  # the sum over all ranks
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.tensor([10.0 ** dist.get_rank()])
    dist.all_reduce(total)
    text += f"={total.item():.0f}"
if "fail" in more and os.environ.get("RANK") == "1":
    sys.exit("rank 1 cannot")
if "ranks" in more:
    text += "," + os.environ.get("RANK", "-") + os.environ.get("TORCHELASTIC_RUN_ID", "-")
with open("notes.txt", "a") as file:
    file.write(text + "\\n")
if "wait" in more:
    with open(f"pid{os.environ.get('RANK', '')}.txt", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
"""

SCRIPT = """
from pathlib import Path
from datacomp_flyt import steps
from datacomp_flyt.distributed.torchrun_ranks import ranks_of_torchrun
from datacomp_flyt.steps import Step
from datacomp_flyt.exits import running
steps.PRELOADED = ()
if __name__ == "__main__":
    with running("steps"):
        ranks, todo, run = ranks_of_torchrun(), {steps}, Path("run")
        if ranks and ranks.rank:
            steps.follow_steps(todo, run, Path("."), ranks)
        else:
            steps.run_steps(todo, run, quiet=True, cwd=Path("."), ranks=ranks)
"""


def step(name: str, text: str, *more: str, together: bool = False, aside: bool = False) -> Step:
    return Step(name, text, ("python", "-m", "recorder", text, *more), together, aside)


class Folder:
    """A working directory with a module that records its arguments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "recorder.py").write_text(RECORDER)

    def start(self, *steps: Step, ranks: int = 0) -> subprocess.Popen[str]:
        script = self.path / "script.py"
        script.write_text(SCRIPT.format(steps=list(steps)))
        path = os.pathsep.join([str(REPOSITORY), str(self.path)])
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks))
        return subprocess.Popen(
            [sys.executable, *(torchrun if ranks else ()), str(script)],
            cwd=self.path, text=True, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *steps: Step, ranks: int = 0) -> str:
        """Run the steps, and return stderr."""
        process = self.start(*steps, ranks=ranks)
        stderr = process.communicate()[1]
        assert process.returncode == 0, stderr
        return str(stderr)

    @property
    def notes(self) -> list[str]:
        return (self.path / "notes.txt").read_text().split()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_step_aside_is_done_again_and_changes_nothing_else(folder: Folder) -> None:
    folder.run(step("one", "a"), step("page", "p", aside=True), step("two", "b"))
    assert folder.run(step("one", "a"), step("page", "q", aside=True), step("two", "b")) == ""
    assert folder.run(step("one", "a"), step("two", "b")) == ""
    assert folder.notes == ["a", "p", "b", "q"]


def test_ranks_help_where_they_are_called(folder: Folder) -> None:
    """Two steps run on all ranks with a process group each, and two on rank 0 alone."""
    pytest.importorskip("torch")
    todo = [
        step("one", "a", "ranks"),
        step("two", "b", "sum", together=True),
        step("three", "c", "ranks"),
        step("four", "d", "sum", together=True),
    ]
    folder.run(*todo[:2], ranks=2)
    assert folder.notes == ["a,--", "b=11", "b=11"]
    folder.run(*todo, ranks=3)  # goes on with more
    assert folder.notes[3:] == ["c,--", "d=111", "d=111", "d=111"]
    assert sorted(path.name for path in (folder.path / "run" / "logs").glob("*.rank*")) == [
        "four.rank1.log", "four.rank2.log", "two.rank1.log",
    ]  # fmt: skip
    folder.run(*todo)
    assert len(folder.notes) == 7


def test_one_rank_that_fails_ends_all(folder: Folder) -> None:
    pytest.importorskip("torch")
    todo = [step("one", "a", "fail", "wait", together=True), step("two", "b")]
    process = folder.start(*todo, ranks=2)
    stderr = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert "step one ended with exit code 1 (rank 1 cannot)" in stderr
    wait_for(lambda: not is_running(int((folder.path / "pid0.txt").read_text())))
    assert not (folder.path / "run" / "done" / "one.json").exists()
    assert folder.notes == ["a"]


def test_killed_outright_it_leaves_nothing_running(folder: Folder) -> None:
    process = folder.start(step("one", "a"), step("two", "b", "wait"))
    pid = folder.path / "pid.txt"
    wait_for(lambda: pid.exists() and pid.read_text() != "")
    process.kill()
    process.communicate()
    wait_for(lambda: not is_running(int(pid.read_text())))
    assert folder.run(step("one", "a"), step("two", "b")) == ""
    assert folder.notes == ["a", "b", "b"]


def wait_for(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
