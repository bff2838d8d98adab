"""`datacomp-flyt demo`: its flags, and the quick tour without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datacomp_flyt.cli import main
from datacomp_flyt.demo import POOL
from datacomp_flyt.installation import install_command
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.subset import check_subset_file
from tests.conftest import REPOSITORY

# modules of the extras [train], [report] and [ray]
EXTRAS = ("torch", "torchvision", "open_clip", "webdataset", "jinja2", "matplotlib", "ray")
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
from datacomp_flyt.cli import main
main()
"""


@pytest.fixture(autouse=True)
def no_tour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once where a refusal is missing, instead of running a tour of half an hour."""
    try:
        from datacomp_flyt.demo import tour
    except ImportError:  # without the extras there is no tour
        return
    monkeypatch.setattr(tour, "run_tour", lambda *_: pytest.fail("the tour has begun"))


def without_extras(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command with only the required packages installed."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "demo", *map(str, words)],
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the one sentence of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(["demo", *map(str, words)])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("datacomp-flyt demo: error: ")
    return err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seeds", 0), "--seeds 0 is none: give 1 or more"),
        (("--seeds", -3), "--seeds -3 is none"),
        (("--noise", 2), "--noise 2.0 leaves no good pairs: give 0 to 0.8"),
        (("--noise", 0.81), "--noise 0.81 leaves"),
        (("--noise", -0.1), "--noise -0.1 leaves"),
        (("--noise", "nan"), "--noise nan leaves"),
    ],
)
def test_bad_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    assert said in refused(capsys, *words, "--work_dir", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("quick", [(), ("--quick",)])
@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_work_dir_that_cannot_be_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: str, quick: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    said = refused(capsys, "--work_dir", tmp_path / folder, *quick)
    assert f"--work_dir {tmp_path / folder} cannot be written" in said


def test_a_work_dir_that_is_write_protected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised by a stand-in, since root, who may run tests, can write everywhere."""

    def no(*_: object, dir: Path, **__: object) -> Any:
        assert dir == tmp_path
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", no)
    said = refused(capsys, "--work_dir", tmp_path)
    assert f"--work_dir {tmp_path} cannot be written (Permission denied)" in said


def test_quick_needs_no_extra(tmp_path: Path) -> None:
    work = tmp_path / "new" / "work"
    ended = without_extras("--quick", "--work_dir", work)
    assert (ended.returncode, ended.stderr) == (0, "")
    pool = read_pool(str(POOL / "metadata"), num_workers=1, progress=False).uids
    subsets = sorted(work.iterdir())
    assert [path.name for path in subsets] == [f"subset_{number}.npy" for number in (1, 2, 3, 4)]
    for path in subsets:
        assert check_subset_file(path, pool_uids=pool).problems == []
    draws = [len(np.load(path)) for path in subsets]
    assert draws == [126, 420, 420, 420]  # 30% of 420, and --num_samples
    assert ended.stdout.splitlines().count("  valid") == 4
    assert ended.stdout.count("\n$ python -m baselines_plugin --name ") == 4


def test_extras_are_required_without_quick(tmp_path: Path) -> None:
    ended = without_extras("--work_dir", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"datacomp-flyt demo: error: jinja2 is not installed: {install_command('train,report')}\n"
    )
    assert not list(tmp_path.iterdir())


class Tours:
    """A stand-in for the tour that records its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
        for name in ("jinja2", "matplotlib", "open_clip"):
            pytest.importorskip(name)
        self.calls: list[tuple[Path, list[tuple[float, int]]]] = []
        self.error = error
        monkeypatch.setattr("datacomp_flyt.demo.tour.run_tour", self)

    def __call__(self, work_dir: Path, experiments: list[Any]) -> list[Any]:
        self.calls.append((work_dir, [(each.noise, each.seed) for each in experiments]))
        if self.error is not None:
            raise self.error
        return []


def test_flags_reach_the_tour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tours = Tours(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--work_dir", "w", "--seeds", "3", "--noise", "0.25"]):
        with pytest.raises(SystemExit) as ended:
            main(["demo", *words])
        assert ended.value.code == 0
    assert tours.calls == [
        (Path("demo_output"), [(0.5, 0)]),
        (Path("w"), [(0.25, 0), (0.25, 1), (0.25, 2)]),
    ]


def test_stopped_by_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Tours(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--work_dir", str(tmp_path)])
    assert ended.value.code == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err
