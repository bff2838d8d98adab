"""Commands that install missing packages: each has to work as it is printed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from datacomp_flyt.errors import InputError
from datacomp_flyt.installation import Installed, command_for, needs_extra, release, require_version
from tests.conftest import REPOSITORY

# `pip install` of the bare name, which is on no index; a path, `.`, or `NAME @ URL` is fine
WRONG = re.compile(r"pip install\s[^\n#`&|;]*?(?<![/\w.])datacomp[-_]flyt(?![\w/.]| @)")
REQUIRES = [
    "numpy>=1.23",
    'torch>=1.13; extra == "train"',
    'webdataset<=0.2.86,>=0.2.31; extra == "train"',
    'jinja2>=3.1; extra == "report"',
    'contourpy<1.3.2; python_version < "3.11" and extra == "report"',
    'ray>=2.9; extra == "ray"',
]


def clone(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "datacomp-flyt"\n')
    return folder


def direct_url(url: str, **info: object) -> Installed:
    return Installed(REQUIRES, json.dumps({"url": url, **info}))


def test_a_clone_on_the_path(tmp_path: Path) -> None:
    root = clone(tmp_path / "a clone")
    assert command_for("train", root, None) == f"pip install '{root}[train]'"


def test_an_editable_clone_stays_editable(tmp_path: Path) -> None:
    root = clone(tmp_path / "clone")
    installed = direct_url(root.as_uri(), dir_info={"editable": True})
    assert command_for("train,report", root, installed) == f"pip install -e '{root}[train,report]'"


def test_a_copy_of_a_clone_that_is_still_there(tmp_path: Path) -> None:
    root = clone(tmp_path / "it's mine")
    words = shlex.split(command_for("ray", tmp_path, direct_url(root.as_uri(), dir_info={})))
    assert words == ["pip", "install", f"{root}[ray]"]


def test_a_copy_of_a_clone_that_is_gone(tmp_path: Path) -> None:
    installed = direct_url((tmp_path / "gone").as_uri(), dir_info={})
    assert command_for("train", tmp_path, installed) == (
        "pip install 'numpy>=1.23' 'torch>=1.13' 'webdataset<=0.2.86,>=0.2.31'"
    )


def test_a_wheel_and_a_repository(tmp_path: Path) -> None:
    wheel = tmp_path / "datacomp_flyt-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"")
    installed = direct_url(wheel.as_uri(), archive_info={})
    assert command_for("ray", tmp_path, installed) == (
        f"pip install 'datacomp-flyt[ray] @ {wheel.as_uri()}'"
    )
    vcs = {"vcs": "git", "commit_id": "0123abc"}
    installed = direct_url("https://host/datacomp_flyt.git", vcs_info=vcs)
    assert command_for("ray", tmp_path, installed) == (
        "pip install 'datacomp-flyt[ray] @ git+https://host/datacomp_flyt.git@0123abc'"
    )


def test_requirements_are_named_where_nothing_else_is_known(tmp_path: Path) -> None:
    installed = Installed(REQUIRES, None)
    report = shlex.split(command_for("report", tmp_path, installed))
    of_this_python = ["contourpy<1.3.2"] if sys.version_info < (3, 11) else []
    assert report == ["pip", "install", "numpy>=1.23", "jinja2>=3.1", *of_this_python]
    assert command_for("train", tmp_path, None, "open_clip") == "pip install open_clip_torch"
    assert command_for("", tmp_path, None, "safetensors") == "pip install safetensors"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": 3}', "not JSON"])
def test_a_damaged_direct_url(content: str, tmp_path: Path) -> None:
    assert command_for("ray", tmp_path, Installed(REQUIRES, content)) == (
        "pip install 'numpy>=1.23' 'ray>=2.9'"
    )


def test_the_command_here_names_this_clone() -> None:
    with (
        pytest.raises(InputError, match=r"no_such_package is not installed: pip install ") as told,
        needs_extra("train"),
    ):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert f"{REPOSITORY}[train]" in str(told.value)


@pytest.mark.parametrize("name", ["pyarrow.no_such_part", "numpy.no_such_part"])
def test_an_installed_package_without_a_module_is_not_said_to_be_missing(name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be imported here"), needs_extra("train"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_faults_of_this_package_stay_faults() -> None:
    with pytest.raises(ImportError), needs_extra("train"):
        from datacomp_flyt.errors import no_such_name  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.13.0", (1, 13, 0)),
        ("1.13.0+cu117", (1, 13, 0)),
        ("2.3.0a0+git1234", (2, 3, 0)),
        ("4.2.0.dev0", (4, 2, 0)),
        ("0.2.86", (0, 2, 86)),
        ("", ()),
        ("unknown", ()),
    ],
)
def test_the_numbers_of_a_version(version: str, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers


def test_a_version_that_is_too_old_is_one_sentence() -> None:
    require_version("numpy", "1.0", "this")
    require_version("no-such-package", "1.0", "this")
    with pytest.raises(InputError, match=r"^this needs numpy 99 or later and this environment has"):
        require_version("numpy", "99", "this")


def test_no_page_and_no_source_installs_from_an_index_that_has_it_not() -> None:
    """The package is not on PyPI, so `pip install datacomp-flyt` in any form cannot work."""
    paths = [
        path
        for pattern in ("*.md", "docs/*", "patches/*", "benchmarks/**/*.py", "Makefile")
        for path in REPOSITORY.glob(pattern)
    ]
    paths += [
        path
        for package in ("datacomp_flyt", "baselines_plugin")
        for path in (REPOSITORY / package).rglob("*.py")
    ]
    found = [
        f"{path}: {match[0]}"
        for path in paths
        if path.is_file()
        for match in WRONG.finditer(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "command",
    [
        "pip install datacomp-flyt",
        "pip install 'datacomp-flyt[train]'",
        'pip install -U "datacomp-flyt[train,report]"',
        "pip install torch datacomp_flyt",
    ],
)
def test_the_pattern_above_finds_commands_that_cannot_work(command: str) -> None:
    assert WRONG.search(command)


@pytest.mark.parametrize(
    "command",
    [
        "pip install '.[train]'",
        "pip install 'path/to/datacomp_flyt[train]'",
        "pip install -e /home/me/datacomp_flyt",
        "pip install . && datacomp-flyt install ~/datacomp",
    ],
)
def test_and_leaves_those_that_can(command: str) -> None:
    assert not WRONG.search(command)
