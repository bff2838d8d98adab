"""A job goes on if its output cannot be written."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.streams import ProtectedStream, protected, say
from tests.conftest import REPOSITORY, make_pool, sorted_uids, write_files

POOL = make_pool(30)
CLI = ("-m", "datacomp_flyt.cli")
SELECT = (
    *("-m", "baselines_plugin", "--name", "no_cap", "--column", "clip_b32_similarity_score"),
    *("--num_samples", "50", "--metadata_dir", "metadata", "--save_path", "out/s.npy"),
)
NOTE = "note: stdout cannot be written ("


class Ended(NamedTuple):
    code: int
    out: str
    errors: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("streams")
    write_files(place / "metadata", POOL.metadata, 2)
    uids = sorted_uids(POOL.uids)
    write_subset(place / "valid.npy", uids)
    np.save(place / "unsorted.npy", uids[::-1])
    return place


def run(folder: Path, words: tuple[str, ...], shell: str = "", **environment: str) -> Ended:
    """Run `python WORDS` in a shell line and return the exit code of Python."""
    ended = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


# --- whole commands

STREAMS = {
    "a reader that has gone": "| true",
    "a reader of one line": "| head -n 1",
    "a full disk": "> /dev/full",
    "closed stdout": ">&-",
    "closed stderr": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "all full": "> /dev/full 2>&1",
}


@pytest.mark.parametrize("shell", STREAMS.values(), ids=STREAMS.keys())
def test_no_selection_is_lost(folder: Path, shell: str) -> None:
    saved = folder / "out" / "s.npy"
    if not (folder / "expected").exists():
        assert run(folder, SELECT).code == 0
        saved.rename(folder / "expected")
    ended = run(folder, SELECT, shell)
    assert ended.code == 0
    assert saved.read_bytes() == (folder / "expected").read_bytes()
    saved.unlink()
    if shell == "> /dev/full":
        assert f"python -m baselines_plugin: {NOTE}No space left on device)" in ended.errors
        assert len(ended.errors.splitlines()) == 1
    else:
        assert ended.errors == ""


@pytest.mark.parametrize(
    ("words", "shell", "code"),
    [
        (("check", "valid.npy"), "> /dev/full", 0),
        (("check", "unsorted.npy"), "> /dev/full", 1),
        (("check", "unsorted.npy"), "| true", 1),
        (("check", "absent.npy"), "2>&-", 2),
        (("check", "unsorted.npy"), ">&- 2>&-", 1),
        (("--help",), "| true", 0),
        (("--version",), "> /dev/full", 0),
        (("check", "--help"), ">&-", 0),
        (("nothing",), "2> /dev/full", 2),
        (("manifest", "metadata", "--save_path", "out/m.json"), "> /dev/full", 0),
    ],
)
def test_exit_codes_stay_answers(
    folder: Path, words: tuple[str, ...], shell: str, code: int
) -> None:
    ended = run(folder, (*CLI, *words), shell)
    assert ended.code == code
    assert ended.errors.count(NOTE) == len(ended.errors.splitlines()) == (shell == "> /dev/full")


def test_no_file_gets_the_number_of_a_closed_stream(folder: Path) -> None:
    """Otherwise printed text would be written into the output file."""
    script = (
        "import os\nfrom datacomp_flyt.exits import running\nwith running('x'):\n"
        "    file = open('data', 'w')\n    print('to nobody')\n    os.write(1, b'nor this')\n"
        "    os.system('echo; echo >&2')\n    file.write('data')\n"
    )
    assert run(folder, ("-c", script), "<&- >&- 2>&-").code == 0
    assert (folder / "data").read_text() == "data"


NAMES = ("é.npy", "映画.npy", "\udcff.npy", "\udcc3(.npy", "😀.npy", "İ.npy", "a\u2028b.npy")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize(
    "terminal",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=str,
)
def test_a_terminal_that_lacks_a_character(
    folder: Path, name: str, terminal: dict[str, str]
) -> None:
    (folder / name).write_bytes((folder / "valid.npy").read_bytes())
    ended = run(folder, (*CLI, "check", name), **terminal)
    assert (ended.code, ended.errors) == (0, "")
    assert ended.out.isascii()
    assert ended.out.splitlines()[-1] == "valid"


# --- streams


@pytest.mark.parametrize(
    "printing",
    [
        lambda: print("x" * 100_000),
        lambda: sys.stdout.writelines(["x\n"] * 10_000),
        lambda: print("x", flush=True),
        lambda: say(*["x"] * 10_000),
        lambda: sys.stdout.write("no end of line"),
        lambda: (print("x"), sys.stdout.flush(), print("y")),
    ],
)
@pytest.mark.parametrize("kind", ["full", "gone", "closed", "closed below"])
def test_printing_never_raises(
    monkeypatch: pytest.MonkeyPatch, printing: Callable[[], object], kind: str
) -> None:
    """Closing the stream does not raise either, as at the end of the interpreter."""
    if kind == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, number = os.pipe()
        os.close(reader)
    stream = open(number, "w", encoding="ascii")  # noqa: SIM115
    if kind == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    with protected("x"):
        if kind == "closed below":
            os.close(number)
        printing()
        print("é", "\udcff")
    assert sys.stdout is stream
    stream.close()


def test_what_libraries_print(capsys: pytest.CaptureFixture[str]) -> None:
    """Handlers and bars keep a stream after it has failed."""
    with open("/dev/full", "w") as full:
        stream = ProtectedStream(full)
        handler = logging.StreamHandler(stream)
        handler.emit(logging.LogRecord("a", 30, "f", 1, "said", (), None))
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            print("x", file=stream)
        stream.flush()
        assert stream.failure == "No space left on device"
        assert stream.fileno() == full.fileno()
    assert capsys.readouterr().err == ""


def test_a_slow_reader_of_a_pipe_that_does_not_block() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    script = "import sys; print(len(sys.stdin.read()))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=reader, stdout=subprocess.PIPE, text=True
    ) as process:
        os.close(reader)
        with open(writer, "w") as file:
            stream = ProtectedStream(file)
            for _ in range(20):
                stream.write("x" * 100_000)
            stream.flush()
            assert os.get_blocking(writer)
            assert stream.failure is None
        assert int(process.communicate(timeout=60)[0]) > 1_000_000


def test_streams_that_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with protected("x"), protected("y"):
        say("a", "b")
        print("c")
    assert stream.getvalue() == "a\nb\nc\n"
    assert sys.stdout is stream
