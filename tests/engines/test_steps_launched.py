"""Steps aside, and steps that a launcher starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datacomp_flyt.engines.steps import Step
from tests.conftest import REPOSITORY

NOTING = """
import os, sys, time
text, *more = sys.argv[1:]
with open("notes.txt", "a") as file:
    file.write(text + os.environ.get("LAUNCHED", "") + "\\n")
if "wait" in more:
    with open("pid.txt", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
"""

SCRIPT = """
from pathlib import Path
from datacomp_flyt.engines import steps
from datacomp_flyt.engines.steps import Step, run_steps
from datacomp_flyt.errors import exit_on_input_error
steps._PRELOADED = ()  # no step here wants torch
if __name__ == "__main__":
    with exit_on_input_error("steps"):
        run_steps({steps}, Path("{folder}"), quiet=True, cwd=Path("."))
"""


def step(
    name: str, text: str, *more: str, launcher: tuple[str, ...] = (), aside: bool = False
) -> Step:
    return Step(name, text, ("python", "-m", "noting", text, *more), launcher, aside)


class Folder:
    """A working directory with a module that notes what it was told."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "noting.py").write_text(NOTING)

    def start(self, *steps: Step, folder: str = "run") -> subprocess.Popen[str]:
        script = self.place / "script.py"
        script.write_text(SCRIPT.format(steps=list(steps), folder=folder))
        path = os.pathsep.join([str(REPOSITORY), str(self.place)])
        return subprocess.Popen(
            [sys.executable, str(script)], cwd=self.place, text=True, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def run(self, *steps: Step) -> str:
        """What it said on stderr."""
        process = self.start(*steps)
        said = process.communicate()[1]
        assert process.returncode == (2 if said else 0)
        return said

    @property
    def notes(self) -> list[str]:
        return (self.place / "notes.txt").read_text().split()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_step_aside_is_done_again_and_changes_nothing_else(folder: Folder) -> None:
    folder.run(step("one", "a"), step("page", "p", aside=True), step("two", "b"))
    assert folder.run(step("one", "a"), step("page", "q", aside=True), step("two", "b")) == ""
    assert folder.run(step("one", "a"), step("two", "b")) == ""
    assert folder.notes == ["a", "p", "b", "q"]


def test_launcher_is_no_part_of_what_is_remembered(folder: Folder) -> None:
    launcher = ("env", "LAUNCHED=!", sys.executable)
    assert folder.run(step("one", "a", launcher=launcher)) == ""
    assert folder.run(step("one", "a")) == ""
    assert folder.notes == ["a!"]
    assert "cannot be started" in folder.run(step("two", "b", launcher=("no-such-program",)))


@pytest.mark.parametrize("launcher", [(), (sys.executable,)])
def test_killed_outright_it_leaves_nothing_running(
    folder: Folder, launcher: tuple[str, ...]
) -> None:
    process = folder.start(step("one", "a"), step("two", "b", "wait", launcher=launcher))
    pid = folder.place / "pid.txt"
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
