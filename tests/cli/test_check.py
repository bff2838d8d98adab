"""`datacomp-flyt check`: exit code 0 for valid, 1 for not valid, 2 for not readable."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt import __version__
from datacomp_flyt.cli import COMMANDS, command_module
from datacomp_flyt.pool.subset import write_subset
from tests.cli.commands import run
from tests.conftest import REPOSITORY, hex_uids, make_pool, sorted_uids, write_files

POOL = make_pool(30)
UIDS = sorted_uids(POOL.uids)


@pytest.fixture
def metadata(tmp_path: Path) -> str:
    return write_files(tmp_path / "metadata", POOL.metadata, 2, seed=1)


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    """Write 40 draws: 20 examples twice."""
    write_subset(tmp_path / "s.npy", UIDS, np.array([2] * 20 + [0] * 10, np.int32))
    return tmp_path / "s.npy"


def test_a_valid_subset(capsys: pytest.CaptureFixture[str], subset: Path, metadata: str) -> None:
    code, out, err = run(
        capsys, "check", subset, "--metadata_dir", metadata, "--scale", "small", "--num_workers", 1
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == str(subset)
    assert out.splitlines()[-1] == "valid"
    assert "40 draws of 20 examples, each at most 2 times" in out
    assert "effective number of examples 20" in out
    assert "training sees 12,800,000 samples: on average each draw 320,000 times" in out
    assert "all in the pool of 30 examples, of which they are 66.7%" in out
    assert "NOT VALID" not in out


def test_size_and_hash_name_the_file(
    capsys: pytest.CaptureFixture[str], subset: Path, tmp_path: Path
) -> None:
    """The hash identifies the resharder's `sample_ids.npy` and the uploaded file."""
    copy = tmp_path / "sample_ids.npy"
    copy.write_bytes(subset.read_bytes())
    lines = [run(capsys, "check", path)[1].splitlines()[1] for path in (subset, copy)]
    digest = hashlib.sha256(subset.read_bytes()).hexdigest()
    assert lines == [f"  {subset.stat().st_size:,} bytes, sha256 {digest}"] * 2
    assert subset.stat().st_size == 128 + 40 * 16


def test_membership_is_said_to_be_unchecked_without_a_pool(
    capsys: pytest.CaptureFixture[str], subset: Path
) -> None:
    code, out, _ = run(capsys, "check", subset)
    assert code == 0
    assert "not checked: whether its uids are in the pool" in out


UNKNOWN_UIDS = sorted_uids([*POOL.uids, *hex_uids(3, "strangers")])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (UIDS[::-1], "is not sorted"),
        (UIDS[:0], "is empty"),
        (np.arange(9), "has dtype int64, shape (9,), wanted dtype 'u8,u8'"),
        (UNKNOWN_UIDS, "has 3 uids that are not in the pool"),
    ],
)
def test_a_subset_that_is_not_valid(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    metadata: str,
    array: np.ndarray,
    said: str,
) -> None:
    np.save(tmp_path / "s.npy", array)
    code, out, err = run(capsys, "check", tmp_path / "s.npy", "--metadata_dir", metadata)
    assert (code, err) == (1, "")
    assert f"NOT VALID: it {said}" in out
    assert out.splitlines()[-1] == "not valid"


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.npy"], ["metadata"], ["s.npy", "--metadata_dir", "nowhere"], ["text.npy"]],
)
def test_what_cannot_be_read(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    subset: Path,
    metadata: str,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npy").write_text("no array")
    code, _, err = run(capsys, "check", *arguments)
    assert code == 2
    assert err.startswith("datacomp-flyt check: error: ")
    assert len(err.splitlines()) == 1
    assert arguments[-1] in err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert {"install", "check", "demo"} <= set(COMMANDS)
    for name in COMMANDS:
        module = command_module(name)
        assert name in out
        assert module.__doc__
        assert " ".join(module.__doc__.split()[:4]) in " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    if name in ("embed", "train"):
        pytest.importorskip("open_clip")
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"datacomp-flyt {name}" in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"datacomp-flyt {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["check"], ["install"]])
def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """One line says so, without the usage."""
    code, _, said = run(capsys, *arguments)
    assert code == 2
    (line,) = said.splitlines()
    assert line.startswith("datacomp-flyt")
    assert ": error: " in line


@pytest.mark.parametrize(("name", "code"), [("s.npy", 0), ("u.npy", 1), ("nowhere.npy", 2)])
def test_as_a_command(subset: Path, name: str, code: int) -> None:
    np.save(subset.with_name("u.npy"), UIDS[::-1])
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", "datacomp_flyt.cli", "check", str(subset.with_name(name))],
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code
    assert len(ended.stderr.splitlines()) == (code == 2)
