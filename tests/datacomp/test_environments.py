"""`install DIR --check`: the commands that run in an environment, given as a table of versions."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from datacomp_flyt.datacomp import environments
from datacomp_flyt.datacomp.environments import COMMANDS, Command, problems, table
from datacomp_flyt.installation import DISTRIBUTIONS, OLDEST_FOR_TRAINING
from tests.conftest import REPOSITORY

EVERYTHING = {
    re.match(r"\w+", need)[0]: ""  # type: ignore[index]
    for command in COMMANDS
    for need in command.needs
}
DATACOMP = EVERYTHING | {
    "numpy": "1.23.4", "pandas": "1.5.1", "pyarrow": "7.0.0", "torch": "1.13.0",
    "torchvision": "0.14.0", "open_clip": "2.16.1", "webdataset": "0.2.31", "PIL": "9.3.0",
    "matplotlib": "3.7.1", "threadpoolctl": "3.1.0", "huggingface_hub": "0.14.1",
    "cv2": "4.6.0.66", "sklearn": "1.1.3", "ray": "2.60.0", "jinja2": "3.1.6",
}  # fmt: skip
NEW = EVERYTHING | {
    "numpy": "2.4.6", "pandas": "3.1.1", "pyarrow": "26.0.1", "torch": "2.14.1+cpu",
    "torchvision": "0.29.1", "open_clip": "3.3.0", "webdataset": "0.2.86", "PIL": "12.3.0",
    "matplotlib": "3.11.2", "threadpoolctl": "3.8.0", "huggingface_hub": "2.4.0",
    "cv2": "4.11.0.86", "sklearn": "1.7.2", "ray": "2.60.0", "jinja2": "3.1.6",
}  # fmt: skip
SELECTION = "selection: python -m baselines_plugin"
RESHARDER = "DataComp's resharder.py"
HOOK = "datacomp-flyt train_clip -- train.py"
EVALUATE = "DataComp's evaluate.py"
EMBED = "datacomp-flyt embed, score --shards_dir"
TRAIN = "datacomp-flyt train"
REPORT = "datacomp-flyt report"
RAY = "--engine ray"


def refused(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the commands that do not run, with the reasons."""
    found = {c.name: "; ".join(problems(c, versions, installs)) for c in COMMANDS}
    return {name: reasons for name, reasons in found.items() if reasons}


def installs(extra: str) -> str:
    return f"pip install 'somewhere[{extra}]'"


def without(versions: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name not in names}


def test_datacomps_own_environment_runs_all_but_training_a_scoring_model() -> None:
    (reason,) = refused(DATACOMP).items()
    assert reason == (
        TRAIN,
        "needs torch>=2.3, open_clip_torch>=2.20 (has torch 1.13.0, open_clip_torch 2.16.1): use "
        "an environment of its own, see docs/environments.md",
    )


def test_a_new_environment_runs_all_of_this_package() -> None:
    found = refused(NEW)
    assert set(found) == {RESHARDER, EVALUATE, "DataComp's train.py without train_clip"}
    assert "webdataset 0.2.86 is too new: pip install 'webdataset<=0.2.85'" in found[RESHARDER]


@pytest.mark.parametrize(
    ("versions", "names", "words"),
    [
        (DATACOMP | {"webdataset": "0.2.86"}, {RESHARDER}, "'webdataset<=0.2.85'"),
        (DATACOMP | {"webdataset": "0.2.111"}, {RESHARDER, HOOK, EMBED, REPORT}, "webdataset<="),
        (DATACOMP | {"webdataset": "1.0.2"}, {RESHARDER, HOOK, EMBED, REPORT}, "webdataset<="),
        (DATACOMP | {"numpy": "2.2.6"}, {SELECTION, RESHARDER, HOOK, EVALUATE}, "'numpy<2'"),
        (DATACOMP | {"numpy": "1.22.4"}, {SELECTION, HOOK}, "numpy>=1.23 (has numpy 1.22.4)"),
        (DATACOMP | {"pyarrow": "6.0.1"}, {SELECTION, HOOK}, "pyarrow>=7 (has pyarrow 6.0.1)"),
        (DATACOMP | {"torch": "1.12.1"}, {HOOK, EMBED}, "torch>=1.13 (has torch 1.12.1)"),
        (DATACOMP | {"open_clip": "2.16.0"}, {HOOK, EMBED}, "open_clip_torch>=2.16.1"),
        (NEW | {"open_clip": "4.0.0"}, {HOOK}, "'open_clip_torch<=3.3.0'"),
        (NEW | {"torch": "2.2.2", "numpy": "1.26.4"}, {TRAIN}, "torch>=2.3 (has torch 2.2.2)"),
        (NEW | {"torch": "2.2.2"}, {TRAIN, HOOK, EMBED}, "2.4.6 is too new for torch 2.2.2"),
        (NEW | {"pandas": "2.1.4"}, {HOOK}, "2.4.6 is too new for pandas 2.1.4"),
        (without(NEW, "torch"), {HOOK, TRAIN, EMBED}, "pip install 'somewhere[train]'"),
        (without(NEW, "jinja2", "matplotlib"), {REPORT}, "jinja2, matplotlib not installed"),
        (without(NEW, "ray"), {RAY}, "ray not installed: pip install 'somewhere[ray]'"),
        (without(DATACOMP, "simdjson", "cv2"), {RESHARDER}, "opencv-python, pysimdjson not inst"),
        (without(DATACOMP, "clip_benchmark"), {EVALUATE}, "clip_benchmark not installed: see Dat"),
        ({}, {c.name for c in COMMANDS}, "not installed"),
    ],
)
def test_what_does_not_run_and_why(
    versions: Mapping[str, str], names: set[str], words: str
) -> None:
    found = refused(versions)
    assert names <= set(found)
    for name in names:
        assert any(words in found[n] for n in names), found[name]


@pytest.mark.parametrize("version", ["", "1.13.0a0+git49444c3", "2.3.0a0+nv24.5", "unknown"])
def test_versions_that_are_no_releases(version: str) -> None:
    """An unknown version is accepted, and a local one is compared by its numbers."""
    command = Command("one", ("torch>=1.13",), "train")
    assert problems(command, {"torch": version}, installs) == []


def test_the_table_is_one_line_a_command() -> None:
    lines = table(DATACOMP, installs)
    assert len(lines) == len(COMMANDS)
    assert sum(line.endswith("  OK") for line in lines) == len(COMMANDS) - 1


def test_the_bounds_are_those_of_the_extras_and_of_the_hook() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    for bound in ("torch>=1.13", "torchvision>=0.14", "webdataset>=0.2.31,<=0.2.86"):
        assert f'"{bound}"' in text
        assert any(bound in command.needs for command in COMMANDS)
    (command,) = (command for command in COMMANDS if command.name == HOOK)
    source = (REPOSITORY / "datacomp_flyt" / "open_clip_hook" / "trainer.py").read_text()
    first, last = re.search(r'FIRST, LAST = "(.*)", "(.*)"', source).groups()  # type: ignore[union-attr]
    assert {f"open_clip>={first}", f"open_clip<={last}"} <= set(command.needs)
    assert set(OLDEST_FOR_TRAINING) == {"torch", DISTRIBUTIONS["open_clip"]}


def test_check_runs_where_no_package_can_be_imported(tmp_path: Path) -> None:
    """The exit code says whether the lines are in the checkout."""
    blocked = ("numpy", "pyarrow", "torch", "open_clip", "webdataset", "pandas", "safetensors")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from datacomp_flyt.cli import main; main()"
    )
    (tmp_path / "baselines.py").write_text("")
    for folder, code in ((tmp_path, 2), (tmp_path / "none", 2)):
        ended = subprocess.run(
            [sys.executable, "-c", program, "install", str(folder), "--check"],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (ended.returncode, len(ended.stderr.splitlines())) == (code, 1)


def test_versions_of_this_environment() -> None:
    versions = environments.versions_here()
    assert versions["numpy"]
    assert "no_such_module" not in versions
    assert "numpy" in environments.heading(versions)
