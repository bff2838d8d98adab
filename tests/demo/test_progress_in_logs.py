"""Progress: one bar on a terminal, a few lines in a log, and the real progress of steps."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from datacomp_flyt import progress, steps
from datacomp_flyt.progress import Progress, with_progress
from datacomp_flyt.steps import Step, run_steps
from datacomp_flyt.threads import map_threads
from tests.conftest import REPOSITORY


class Clock:
    """A clock that tests set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def run(clock: Clock, seconds: float, steps: int = 100, tenths: bool = False) -> None:
    with Progress("embed", steps, "shard", tenths=tenths) as bar:
        for _ in range(steps):
            clock.now += seconds / steps
            bar.update()


@pytest.mark.parametrize(
    ("seconds", "tenths", "lines"),
    [(5, False, 0), (59, False, 0), (130, False, 2), (3600, False, 59), (0.5, True, 1),
     (100, True, 10), (4, True, 4), (1200, True, 20)],
)  # fmt: skip
def test_lines_of_a_log(
    capsys: pytest.CaptureFixture[str], clock: Clock, seconds: float, tenths: bool, lines: int
) -> None:
    run(clock, seconds, 1000, tenths)
    out, err = capsys.readouterr()
    assert out == ""
    assert abs(len(err.splitlines()) - lines) <= 1 - (lines == 0)
    assert "\r" not in err


def test_the_text_of_a_line(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    run(clock, 150, 3)
    assert capsys.readouterr().err == (
        "embed: 66% (2 of 3 shards, 1:40)\n"  # after 100 seconds: a line a minute
    )
    with Progress("train", 100, tenths=True, initial=50) as bar:
        bar.move_to(55)
        clock.now += 2
        bar.move_to(60)
        bar.move_to(60)
        bar.write("between")
    out, err = capsys.readouterr()
    assert (out, err) == ("between\n", "train: 60% (0:02)\ntrain: done (0:02)\n")


def test_a_failed_bar_is_not_done(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with pytest.raises(ValueError, match="x"), Progress("a", 10, tenths=True):
        raise ValueError("x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [0, 1, 7, 100_000])
def test_any_total(capsys: pytest.CaptureFixture[str], clock: Clock, total: int) -> None:
    with Progress("a", total, "row", tenths=True) as bar:
        bar.update(total)
    assert list(with_progress(range(total), "b", total, "row")) == list(range(total))
    assert capsys.readouterr().err.count("\n") == 1


def test_quiet(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Progress("a", 10, tenths=True, quiet=True) as bar:
        clock.now += 1000
        bar.update(5)
    map_threads(abs, range(10), 2, "threads")
    assert capsys.readouterr() == ("", "")


SCRIPT = """
import time
from datacomp_flyt.progress import Progress
with Progress("work", 4, "step") as bar:
    for number in range(4):
        bar.update()
        bar.note(f"loss {number}")
        bar.write(f"line {number}")
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_bar_on_a_terminal(encoding: str) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=follower, text=True,
        env=environment, check=True,
    )  # fmt: skip
    os.close(follower)
    said = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert ended.stdout == "line 0\nline 1\nline 2\nline 3\n"
    assert "work: 100%|" in said
    assert "loss 3" in said


def test_lines_of_a_log_are_read_by_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """The runner of a step reads its progress from the lines in its log."""
    run(clock, 90, 3)
    (tmp_path / "log").write_text(capsys.readouterr().err)
    assert list(steps.progress_of(tmp_path / "log")) == [66]


MODULES = {
    "tells": (
        "import sys, time\nfor step in range(1, 9):\n"
        "    print(f'step {step}/8', flush=True)\n    time.sleep(0.4)\n"
    ),
    # prints like `datacomp-flyt train`, without a flush
    "trains": (
        "import time\nfrom pathlib import Path\nfrom datacomp_flyt.exits import running\n"
        "from datacomp_flyt.flyt.training_log import TrainingLog\n"
        "with running('t'), TrainingLog(Path('.'), 8, 0, 1, 1, (), {}) as log:\n"
        "    for step in range(8):\n        log.step(step, {})\n        time.sleep(0.4)\n"
    ),
    "fails": "import sys\nprint('step 1/4')\nsys.exit('cannot')\n",
}


@pytest.mark.parametrize("name", ["tells", "trains"])
def test_a_step_in_a_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Lines with the progress are added while the step runs, and no line is drawn again."""
    if name == "trains":
        pytest.importorskip("torch")
    (tmp_path / f"{name}.py").write_text(MODULES[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(steps, "PRELOADED", ())
    run_steps([Step(name, "Tell", ("python", "-m", name))], tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 10
    assert lines[-1].startswith(f"  {name}: done (")
    percents = [int(line.split(": ")[1].split("%")[0]) for line in lines[:-1]]
    assert sorted(set(percents)) == percents
    assert 0 < percents[0] < 100
