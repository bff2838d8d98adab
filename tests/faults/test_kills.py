"""Kills long commands at random moments, and tests the harness itself.

`python -m tests.faults.kills` does many more kills.
"""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.killing import (
    Command,
    Findings,
    Whole,
    differences,
    files_in,
    kill_often,
    partial,
    start_and_kill,
    undisturbed,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
TRAINS = ("train", "train_e_flyt", "embed", "train_clip", "self_filter")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_two_kills(name: str, tmp_path: Path) -> None:
    if name in TRAINS:
        pytest.importorskip("open_clip", reason="the train extra is not installed")
    command = COMMANDS[name](tmp_path)
    whole = undisturbed(command, tmp_path / "run")
    findings = kill_often(command, tmp_path / "run", whole, 2, random.Random(name))
    assert sum(findings.kills.values()) == 2
    assert findings.wrong == {}


# ------------------------------------------------------------------------------- the harness

CAREFUL = """
import os, time
for number in range(4):
    if not os.path.exists(f"{number}.json"):
        with open(f".{number}", "w") as file:
            file.write("[1,")
            file.flush()
            time.sleep(0.04)
            file.write(" 2]")
        os.replace(f".{number}", f"{number}.json")
"""
CARELESS = CAREFUL.replace('f".{number}"', 'f"{number}.json"')
FORGETFUL = CAREFUL.replace('f".{number}"', 'f".{os.getpid()}"')


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return the undisturbed run of a script; CARELESS and FORGETFUL leave the same files."""
    return undisturbed(made(CAREFUL), tmp_path_factory.mktemp("whole") / "run")


def made(script: str) -> Command:
    return Command("made", ("-S", "-c", script))


def killed(tmp_path: Path, script: str, whole: Whole) -> Findings:
    return kill_often(made(script), tmp_path / "run", whole, 5, random.Random(0))


def test_a_careful_command(tmp_path: Path, whole: Whole) -> None:
    assert whole.files == {f"{number}.json": b"[1, 2]" for number in range(4)}
    findings = killed(tmp_path, CAREFUL, whole)
    assert findings.wrong == {}
    assert sum(findings.kills.values()) == 5
    assert findings.ended > 1


def test_a_command_that_writes_in_place(tmp_path: Path, whole: Whole) -> None:
    findings = killed(tmp_path, CARELESS, whole)
    assert {*findings.wrong} == {"partial files", "mismatches"}
    assert any(
        "json (" in text and "is not whole" in text for text in findings.wrong["partial files"]
    )


def test_a_command_that_leaves_temporary_files(tmp_path: Path, whole: Whole) -> None:
    findings = killed(tmp_path, FORGETFUL, whole)
    assert {*findings.wrong} == {"mismatches"}
    assert all(text.endswith("is left") for text in findings.wrong["mismatches"])


def test_a_command_that_fails_before_any_kill(tmp_path: Path) -> None:
    """The failure is reported, and the command is not run again."""
    findings, late = Findings(), Whole({}, 1000.0, 1000)
    command = made("raise SystemExit('in the way')")
    assert start_and_kill(command, tmp_path / "run", late, random.Random(0), findings)
    assert findings.wrong == {"failures": ["made: in the way"]}
    assert not findings.kills


def test_undisturbed_runs_must_be_equal(tmp_path: Path) -> None:
    script = "import os; open('pid.json', 'w').write(str(os.getpid()))"
    with pytest.raises(RuntimeError, match="differ"):
        undisturbed(Command("made", ("-c", script)), tmp_path / "run")
    with pytest.raises(RuntimeError, match="failed undisturbed"):
        undisturbed(Command("made", ("-c", "1/0")), tmp_path / "run")
    same = Command("made", ("-c", script), changing=("*.json",))
    assert [*undisturbed(same, tmp_path / "run").files] == ["pid.json"]


def test_partial_files_and_differences(tmp_path: Path) -> None:
    command = Command("made", (), ("*.log", "n.json"), ("*.pt",), ("*_1.pt",))
    whole = {"a.npy": b"", "b.json": b"{}", "c.log": b"", "d.pt": b""}
    stopped = {"b.json": b"[]", "c.log": b"x", ".b.json.tmp": b"{", "n/tmp.pt": b"", "d.pt": b"P"}
    assert [text.split()[0] for text in partial(command, whole, stopped)] == ["b.json", "d.pt"]
    assert [text.split()[0] for text in partial(command, {}, {"n.json": b"{"})] == ["n.json"]
    assert partial(command, {}, {"e_1.pt": b"P", "n.json": b"[]"}) == []
    assert partial(command, whole, {"b.json": b"{}"}) == []
    took = [{"m.jsonl": b'{"step": 1, "pairs_per_second": %d}\n' % rate} for rate in (7, 88)]
    assert differences(command, *took) == []
    assert differences(command, took[0], {"m.jsonl": took[0]["m.jsonl"].replace(b"1", b"2")})
    assert differences(command, {"a": b"1", "b": b"2"}, {"b": b"3", ".c": b""}) == [
        "a is missing",
        ".c is left",
        "b differs (1 and 1 bytes)",
    ]
    (tmp_path / ".hidden").write_bytes(b"1")
    assert files_in(tmp_path) == {".hidden": b"1"}


def test_states_of_torch_are_compared_by_content() -> None:
    torch = pytest.importorskip("torch")

    def saved(second: str, number: float) -> bytes:
        file = io.BytesIO()
        torch.save({"names": ["a name", second], "w": torch.tensor([number])}, file)
        return file.getvalue()

    command = Command("made", ())
    one, other = (
        saved("a name", 1),
        saved(str(b"a name", "ascii"), 1),
    )  # an equal string in another object
    assert one != other
    assert differences(command, {"c.pt": one}, {"c.pt": other}) == []
    for wrong in (saved("a name", 2), saved("b name", 1), one[:-9]):
        assert len(differences(command, {"c.pt": one}, {"c.pt": wrong})) == 1
