"""Steps: their order and notes, refusals in folders of other steps, and ends of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datacomp_flyt import __version__, progress, steps
from datacomp_flyt.steps import Step, run_steps
from tests.conftest import REPOSITORY, refusal

MODULES = {
    # appends its arguments to a file
    "note": """
import sys
open("ran", "a").write(" ".join(sys.argv[1:]) + "\\n")
""",
    # fails in its second half until a file exists
    "fragile": """
import os
open("ran", "a").write("fragile\\n")
print("first half done")  # still in a buffer when the second half fails
if not os.path.exists("mended"):
    raise ValueError("the cause is\\nnot mended")
""",
    "exits": """
import sys
print("step 1/4\\ncannot go on")
sys.exit(3)
""",
    "tells": """
import json, multiprocessing, os, sys
told = [__name__, sys.argv[1:], os.getcwd(), multiprocessing.get_start_method(allow_none=True)]
json.dump(told, open("told.json", "w"))
print("to stdout")
print("to stderr", file=sys.stderr)
""",
    # counts to 400 from its last number on, in 20 seconds, or at once if a file exists
    "counts": """
import os, time
with open("counted", "a+") as file:
    file.seek(0)
    for number in range(len(file.readlines()), 400):
        if not os.path.exists("haste"):
            time.sleep(0.05)
        file.write(f"{number}\\n")
        file.flush()
""",
}
RUNNING = """
import sys
from pathlib import Path
from datacomp_flyt import progress, steps
steps.PRELOADED = ()
step = steps.Step("counts", "Count", ("python", "-m", "counts"))
steps.run_steps([step], Path(sys.argv[1]), quiet=True)
"""
COUNTS = Step("counts", "Count", ("python", "-m", "counts"))


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of tiny modules that steps can run, and do not preload torch."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(steps, "PRELOADED", ())
    return folder


@pytest.fixture
def work(tmp_path: Path, modules: Path) -> Path:
    return tmp_path / "work"


def note(name: str, *words: str) -> Step:
    return Step(name, f"Note {name}", ("python", "-m", "note", name, *words))


def ran(work: Path) -> list[str]:
    """Return the lines that steps have written since the last call."""
    lines = (work / "ran").read_text().splitlines() if (work / "ran").exists() else []
    (work / "ran").write_text("")
    return lines


def test_in_order_and_once(work: Path) -> None:
    three = [note("b"), note("a", "two words"), note("c")]
    first = run_steps(three, work, quiet=True)
    assert ran(work) == ["b", "a two words", "c"]
    assert list(first) == ["b", "a", "c"]
    assert min(first.values()) > 0
    # no step is left to run, and the seconds are the noted ones
    assert run_steps(iter(three), work, quiet=True) == first
    assert ran(work) == []


def test_steps_that_run_again(work: Path) -> None:
    """They run again also after another list of steps was run."""
    short = [note("a"), replace(note("b"), again=True, aside=True)]
    long = [note("a"), note("c"), replace(note("d"), again=True, aside=True)]
    for steps_, expected in ((short, ["a", "b"]), (long, ["c", "d"]), (short, ["b"])):
        run_steps(steps_, work, quiet=True)
        assert ran(work) == expected


def assert_refused(work: Path, steps: list[Step], name: str) -> None:
    """Check that the steps are refused at one of them, and that the notes stay as they are."""
    before = {path: path.read_bytes() for path in work.rglob("*.json")}
    said = refusal(run_steps, steps, work, quiet=True)
    assert said.startswith(f"{work} holds step {name} as another command, or one before it, made")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_files_of_another_command_are_refused(work: Path, changed: int) -> None:
    """Models and scores of other data would be taken for the new ones."""
    names = ["a", "b", "c", "d"]
    run_steps(map(note, names), work, quiet=True)
    ran(work)
    other = [note(name, *["changed"] * (index == changed)) for index, name in enumerate(names)]
    assert_refused(work, other, names[changed])
    assert ran(work) == []
    run_steps(map(note, names), work, quiet=True)
    assert ran(work) == []


def test_steps_after_a_change_are_refused(work: Path) -> None:
    run_steps([note("a"), note("c")], work, quiet=True)
    assert ran(work) == ["a", "c"]
    assert_refused(work, [note("a"), note("b"), note("c")], "c")
    assert ran(work) == ["b"]  # which was new
    assert_refused(work, [note("c")], "c")
    assert ran(work) == []


def test_steps_can_be_added_at_the_end(work: Path) -> None:
    """Lists of steps that begin alike may share a folder."""
    run_steps([note("a"), note("b")], work, quiet=True)
    run_steps([note("a"), note("b"), note("c")], work, quiet=True)
    assert ran(work) == ["a", "b", "c"]
    run_steps([note("a"), note("b"), note("d")], work, quiet=True)
    run_steps([note("a"), note("b")], work, quiet=True)
    assert ran(work) == ["d"]


def test_titles_are_no_part_of_a_step(work: Path) -> None:
    run_steps([note("a")], work, quiet=True)
    run_steps([Step("a", "Another title", note("a").words)], work, quiet=True)
    assert ran(work) == ["a"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_note_is_ignored(work: Path, content: bytes) -> None:
    run_steps([note("a"), note("b")], work, quiet=True)
    ran(work)
    (work / "done" / "a.json").write_bytes(content)
    run_steps([note("a"), note("b")], work, quiet=True)
    assert ran(work) == ["a"]


def test_a_command_runs_as_python_would_run_it(work: Path) -> None:
    step = Step("tells", "Tell", ("python", "-m", "tells", "--flag", "two words"))
    run_steps([step], work, quiet=True)
    told = json.loads((work / "told.json").read_text())
    assert told == ["__main__", ["--flag", "two words"], str(work), None]
    log = (work / "logs" / "tells.log").read_text()
    assert sorted(log.splitlines()) == ["to stderr", "to stdout"]


def test_own_commands(work: Path) -> None:
    run_steps([Step("version", "Version", ("datacomp-flyt", "--version"))], work, quiet=True)
    assert (work / "logs" / "version.log").read_text() == f"datacomp-flyt {__version__}\n"
    bad = Step("bad", "Bad", ("datacomp-flyt", "check", "absent.npy"))
    said = refusal(run_steps, [bad], work, quiet=True)
    assert "step bad ended with exit code 2 (datacomp-flyt check: error: " in said
    assert "absent.npy" in said


def test_a_step_that_fails(work: Path) -> None:
    fragile = Step("fragile", "Break", ("python", "-m", "fragile"))
    three = [note("before"), fragile, note("after")]
    for attempt in range(2):
        said = refusal(run_steps, three, work, quiet=True)
        assert said == (
            "step fragile ended with exit code 1 (not mended); "
            f"its whole output is in {work / 'logs' / 'fragile.log'}"
        )
        assert ran(work) == [*["before"][attempt:], "fragile"]
        log = (work / "logs" / "fragile.log").read_text()
        assert log.count("first half done\n") == 1  # of this attempt alone
        assert "ValueError: the cause is\n" in log
    (work / "mended").touch()
    run_steps(three, work, quiet=True)
    assert ran(work) == ["fragile", "after"]
    run_steps(three, work, quiet=True)
    assert ran(work) == []


def test_a_failure_without_traceback(work: Path) -> None:
    said = refusal(run_steps, [Step("e", "", ("python", "-m", "exits"))], work, quiet=True)
    assert said.startswith("step e ended with exit code 3 (cannot go on); ")
    said = refusal(run_steps, [Step("n", "", ("python", "-m", "absent"))], work, quiet=True)
    assert "(ImportError: No module named absent)" in said


def test_the_bar_follows_the_step(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar stops at the quarter where the step fails: only a finished step has a full bar."""
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    refusal(run_steps, [Step("e", "", ("python", "-m", "exits"))], work)
    err = capsys.readouterr().err
    assert "e  25%|" in err
    assert "100%" not in err


def test_printed_lines(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = [note("a", "two words"), note("b")]
    run_steps(two, work)
    out, err = capsys.readouterr()
    assert out == (
        "\n=== 1. Note a\n$ python -m note a 'two words'\n\n=== 2. Note b\n$ python -m note b\n"
    )
    assert err.startswith("  a: done (")
    run_steps([*two, note("c")], work)
    out, err = capsys.readouterr()
    assert out.splitlines().count("  done before") == 2
    assert err.startswith("  c: done (")
    assert len(err.splitlines()) == 1
    run_steps([*two, note("c"), note("d")], work, quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("log", "percent"),
    [
        ("", 0),
        ("2026 | INFO | Train Epoch: 0 [ 1280/25600 (5%)] Data (t): 0.1 Loss: 4.8 (100.2)", 5),
        ("[ 1280/25600 (5%)]\nTrain Epoch: 0 [25600/25600 (100%)] Data", 100),
        ("embed:  45%|████▌     | 9/20 [00:01<00:02,  5.1it/s]", 45),
        ("\rembed:   0%|   | 0/2\rembed:  50%|█  | 1/2\rembed: 100%|██| 2/2", 100),
        ("step 3/200  loss 1.25", 1),
        ("step 3/200  loss 1.25\nstep 150/200  loss 1.2", 75),
        ("kept 30% of the pool, 0.5 of 100", 0),  # no progress
        ("10%|x|\n" + "." * 3000 + "\nstep 4/8", 50),  # only the end is read
        ("90%|x|\n" + "é" * 3000, 0),  # cut in the middle of a character
    ],
)
def test_progress(tmp_path: Path, log: str, percent: int) -> None:
    (tmp_path / "log").write_text(log, encoding="utf-8")
    assert max([0, *steps.progress_of(tmp_path / "log")]) == percent


def counted(work: Path) -> list[int]:
    path = work / "counted"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_still(work: Path) -> None:
    """Check that counting has stopped; a process that was just killed may go on for a moment."""
    before = -1
    for _ in range(10):
        before, now = len(counted(work)), before
        if before == now:
            break
        time.sleep(1)
    assert before == now
    assert 0 < before < 400  # it has not finished


def test_killed_and_run_again(work: Path, modules: Path) -> None:
    """If the runner of the steps is killed, the step ends too, and the next run resumes it."""
    path = os.pathsep.join([str(REPOSITORY), str(modules)])
    parent = subprocess.Popen(
        [sys.executable, "-c", RUNNING, str(work)], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        wait_for(lambda: len(counted(work)) > 3)
    finally:
        parent.kill()
        parent.wait()
    assert_still(work)
    assert not (work / "done" / "counts.json").exists()
    (work / "haste").touch()
    run_steps([COUNTS], work, quiet=True)
    assert counted(work) == list(range(400))  # each number once


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_step_ends_with_an_exception_here(
    work: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def watch(*_: object) -> None:
        wait_for(lambda: len(counted(work)) > 3)
        raise error

    monkeypatch.setattr(steps, "_watch", watch)
    with pytest.raises(error):
        run_steps([COUNTS], work, quiet=True)
    assert_still(work)
    assert not (work / "done" / "counts.json").exists()


def test_a_step_that_is_killed_has_failed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that the kernel kills, for its memory for example, is not taken for finished."""
    watch = steps._watch

    def kill_and_watch(process: steps.BaseProcess, *others: object) -> None:
        wait_for(lambda: len(counted(work)) > 3)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        watch(process, *others)

    monkeypatch.setattr(steps, "_watch", kill_and_watch)
    said = refusal(run_steps, [COUNTS], work, quiet=True)
    assert f"step counts ended with exit code {-signal.SIGKILL} " in said
    assert not (work / "done" / "counts.json").exists()


def test_unfinished_files_of_killed_steps_are_removed_and_no_others(work: Path) -> None:
    left = [
        work / folder / ".scores.parquet.0123456789abcdef.datacomp_flyt.tmp"
        for folder in ("done", "round_0/a", "round_1")
    ]
    others = [work / folder / ".config.json.template" for folder in ("", "round_10.old/x", "notes")]
    for path in (*left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run_steps([], work, quiet=True, made=("round_[0-9]/**", "report"))
    assert [path.exists() for path in left] == [False] * 3
    assert [path.exists() for path in others] == [True] * 3
