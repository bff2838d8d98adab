"""Finds versions of installed packages, and the command that installs missing ones.

This module can be imported without NumPy, pyarrow or torch, to describe a broken environment.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from datacomp_flyt.errors import InputError

DISTRIBUTION = "datacomp-flyt"
# The oldest releases that train a scoring model. All else runs with those that DataComp pins.
OLDEST_FOR_TRAINING = {"torch": "2.3", "open_clip_torch": "2.20"}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "open_clip": "open_clip_torch",
    "simdjson": "pysimdjson",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""The distribution of each module whose name differs from it."""
_EXTRA_OF = {
    **dict.fromkeys(("torch", "torchvision", "open_clip", "pandas", "PIL", "webdataset"), "train"),
    **dict.fromkeys(("jinja2", "matplotlib"), "report"),
    "ray": "ray",
}
"""The extra that requires each module, for imports whose command is not known."""
_EXTRA = re.compile(r"extra\s*==\s*[\"']([\w-]+)[\"']")


class Installed(NamedTuple):
    """Metadata of an installed copy of this package.

    Attributes:
        requires: its requirements, as in `Requires-Dist`.
        direct_url: the content of pip's `direct_url.json`; None for a package from an index.
    """

    requires: list[str]
    direct_url: str | None


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (1, 13, 0) for `1.13.0+cu117`."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        # a distribution whose removal was interrupted has no version
        return importlib.metadata.version(distribution) or None
    except importlib.metadata.PackageNotFoundError:
        return None


def require_version(distribution: str, at_least: str, command: str) -> None:
    """Refuse a package that is too old for a command.

    Args:
        distribution: the name of the package. If it is not installed, it is not refused here.
        at_least: the oldest version that works.
        command: the command, for the message.

    Raises:
        InputError: the installed version is older.
    """
    version = installed_version(distribution)
    if version is not None and release(version) < release(at_least):
        raise InputError(
            f"{command} needs {distribution} {at_least} or later and this environment has "
            f"{version}: run it in an environment of its own, see docs/environments.md"
        )


def require_training(command: str) -> None:
    """Raise InputError if the packages are too old to train a scoring model.

    Args:
        command: the command, for the message.
    """
    for distribution, at_least in OLDEST_FOR_TRAINING.items():
        require_version(distribution, at_least, command)


@contextlib.contextmanager
def needs_extra(extra: str = "") -> Iterator[None]:
    """Turn the failed import of a package in the block into a sentence that says how to install it.

    Args:
        extra: the extra that requires the package, several separated by commas; by default it is
            looked up by the name of the module.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("", "datacomp_flyt", "baselines_plugin"):
            raise  # a fault in this package
        raise missing_package(error, extra) from None


def missing_package(error: ImportError, extra: str) -> InputError:
    """Make the error for a package that cannot be imported, with the command that installs it.

    Args:
        error: the failed import.
        extra: the extra of this package that requires it, several separated by commas, or "".
    """
    name = error.name or "a package"
    top = name.partition(".")[0]
    # the package itself can be imported; only a submodule is missing
    if isinstance(error, ModuleNotFoundError) and sys.modules.get(top) is None:
        extra = extra or _EXTRA_OF.get(top, "")
        return InputError(f"{top} is not installed: {install_command(extra, top)}")
    version = installed_version(DISTRIBUTIONS.get(top, top))
    return InputError(
        f"{top} {version or ''} cannot be imported here ({error}): see docs/environments.md, or "
        "make an environment of its own for this command"
    )


def install_command(extra: str, module: str | None = None) -> str:
    """Return a command that installs this package's requirements into this environment.

    The command repeats the installation of this package, which is not on PyPI.

    Args:
        extra: an extra, several separated by commas, or "" for none.
        module: the missing module; it is named if the source of the installation is unknown.
    """
    return command_for(extra, Path(__file__).parents[1], _installed(), module)


def command_for(
    extra: str, root: Path, installed: Installed | None, module: str | None = None
) -> str:
    """Return the `install_command` of a copy of this package.

    Args:
        extra, module: as for `install_command`.
        root: the folder that holds the package.
        installed: the metadata of the copy, if it is installed.
    """
    extras = f"[{extra}]" if extra else ""
    source = _source(installed)
    if _is_checkout(root):
        editable = installed is not None and '"editable": true' in (installed.direct_url or "")
        return f"pip install {'-e ' if editable else ''}{shlex.quote(f'{root}{extras}')}"
    if source is not None:
        if Path(source).is_dir():
            return f"pip install {shlex.quote(f'{source}{extras}')}"
        return f"pip install {shlex.quote(f'{DISTRIBUTION}{extras} @ {source}')}"
    wanted = [] if installed is None else _requirements(installed.requires, extra.split(","))
    if not wanted and module is not None:
        wanted = [DISTRIBUTIONS.get(module, module)]
    return " ".join(["pip install", *map(shlex.quote, wanted)])


def _installed() -> Installed | None:
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Installed(distribution.requires or [], distribution.read_text("direct_url.json"))


def _is_checkout(root: Path) -> bool:
    """Return whether a folder is a clone of this repository, from which pip can install."""
    try:
        return f'name = "{DISTRIBUTION}"' in (root / "pyproject.toml").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _source(installed: Installed | None) -> str | None:
    """Return the folder or URL that pip installed from; None if it is unknown or is gone."""
    if installed is None or installed.direct_url is None:
        return None
    try:
        content = json.loads(installed.direct_url)
        url = content["url"]
    except (ValueError, TypeError, KeyError):
        return None
    if not isinstance(url, str):
        return None
    if url.startswith("file://"):
        path = Path(unquote(urlparse(url).path))
        if "dir_info" in content:
            return str(path) if _is_checkout(path) else None
        return url if path.is_file() else None
    vcs = content.get("vcs_info")
    if not isinstance(vcs, dict):
        return url
    revision = vcs.get("requested_revision") or vcs.get("commit_id")
    return f"{vcs.get('vcs', 'git')}+{url}" + (f"@{revision}" if revision else "")


def _requirements(requires: Iterable[str], extras: Iterable[str]) -> list[str]:
    """Return the requirements of the package itself and of some extras, as pip takes them."""
    wanted = []
    for line in requires:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        match = _EXTRA.search(marker)
        if match is not None and match[1] not in extras:
            continue
        others = [part.strip() for part in marker.split(" and ") if not _EXTRA.search(part)]
        if _holds_here(others):
            wanted.append(requirement.replace(" ", ""))
    return wanted


def _holds_here(markers: Iterable[str]) -> bool:
    """Return whether markers hold; this package uses only `python_version < "X"` and `>= "X"`."""
    for marker in filter(None, markers):
        match = re.fullmatch(r"python_version\s*(<|>=)\s*[\"']([\d.]+)[\"']", marker)
        if match and (sys.version_info[:2] < release(match[2])) != (match[1] == "<"):
            return False
    return True
