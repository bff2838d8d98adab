"""Checks which commands, of this package and of DataComp, run in an environment.

The requirements of a command have pip's form, but name modules, since DataComp's own packages are
installed under several names. No package is imported, so that missing and broken ones are found.
"""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from datacomp_flyt.installation import (
    DISTRIBUTIONS,
    OLDEST_FOR_TRAINING,
    install_command,
    installed_version,
    release,
)

Versions = Mapping[str, str]
"""The version of each installed module by its name; an empty string if it is unknown."""

HALF = "half-installed"
"""The version of a package that pip lists although its module is missing."""

PAGE = "docs/environments.md"
_REQUIREMENT = re.compile(r"(\w+)((?:[<>]=?[\d.]+,?)*)")
# The first release of each package that was built for NumPy 2.
_FOR_NUMPY_2 = {
    "torch": "2.3", "pyarrow": "16.0", "pandas": "2.2.2", "matplotlib": "3.8.4", "cv2": "4.10",
    "sklearn": "1.4.2",
}  # fmt: skip
_SELECTION = ("numpy>=1.23", "pyarrow>=7", "fsspec", "threadpoolctl>=3.1", "tqdm")
_TARS = ("PIL>=9.3", "braceexpand", "webdataset>=0.2.31,<=0.2.86", "torch>=1.13")
_MODELS = (*_TARS, "torchvision>=0.14", "open_clip>=2.16.1")
_TRAINING = tuple(
    f"{name}>={OLDEST_FOR_TRAINING[DISTRIBUTIONS.get(name, name)]}"
    for name in ("torch", "open_clip")
)
_REPORT = ("jinja2>=3.1", "matplotlib>=3.7")


@dataclass(frozen=True)
class Command:
    """A command and its requirements.

    Attributes:
        name: the command, as the table shows it.
        needs: the requirements, by module.
        extra: the extra of this package that requires them; None for DataComp's own scripts.
    """

    name: str
    needs: tuple[str, ...]
    extra: str | None


COMMANDS = (
    Command("selection: python -m baselines_plugin", _SELECTION, ""),
    Command(
        "selection: DataComp's baselines.py",
        (*_SELECTION, "torch", "pandas", "nltk", "fasttext", "gcld3"),
        None,
    ),
    Command("datacomp-flyt check, manifest", _SELECTION, ""),
    Command("datacomp-flyt available, check_parts", (*_SELECTION, *_TARS), "train"),
    Command(
        "DataComp's resharder.py",
        (
            *("numpy", "pyarrow", "cv2", "simdjson", "tqdm", "cloudpathlib", "img2dataset"),
            "webdataset<=0.2.85",  # resharder.py uses a class that webdataset 0.2.86 has moved
        ),
        None,
    ),
    Command(
        "datacomp-flyt train_clip -- train.py",
        (*_SELECTION, *_MODELS, "open_clip<=3.3.0", "pandas>=1.5", "cloudpathlib"),
        "train",
    ),
    Command(
        "DataComp's train.py without train_clip",
        (*_MODELS, "open_clip<2.26", "cloudpathlib", "pandas"),  # later ones renamed it
        None,
    ),
    Command(
        "DataComp's evaluate.py",
        (
            *("numpy", "torch", "open_clip", "clip_benchmark", "cloudpathlib", "webdataset"),
            *("huggingface_hub<1", "requests", "yaml", "sklearn", "datasets", "wilds"),
        ),
        None,
    ),
    Command("datacomp-flyt embed, score --shards_dir", (*_SELECTION, *_MODELS), "train"),
    Command("datacomp-flyt score --metadata_dir", (*_SELECTION, "torch>=1.13"), "train"),
    Command("datacomp-flyt train", (*_SELECTION, *_MODELS, *_TRAINING), "train"),
    Command(
        "datacomp-flyt self_filter",
        (*_SELECTION, *_MODELS, "open_clip<=3.3.0", "pandas", *_REPORT),
        "train,report",
    ),
    Command("datacomp-flyt report", (*_SELECTION, *_REPORT, *_TARS), "report"),
    Command("--engine ray", (*_SELECTION, "ray>=2.9"), "ray"),
)
"""`demo --quick` has the requirements of selection, `demo` those of `train` and `report`."""


def versions_here() -> dict[str, str]:
    """Return the versions of the installed modules that commands need."""
    names = {name for command in COMMANDS for name in _names(command)}
    versions = {}
    for name in sorted(names):
        version = installed_version(DISTRIBUTIONS.get(name, name))
        spec = importlib.util.find_spec(name)
        # the empty folder of a removed package has a spec, but no origin
        if spec is not None and spec.origin is not None:
            versions[name] = version or ""
        elif version is not None:
            versions[name] = HALF
    return versions


def problems(
    command: Command, versions: Versions, installs: Callable[[str], str] = install_command
) -> list[str]:
    """List the reasons why a command does not run in an environment; none if it runs.

    Args:
        command: the command.
        versions: the versions of the environment's modules.
        installs: returns the command that installs an extra of this package.
    """
    missing: list[str] = []
    too_old: dict[str, str] = {}  # bound by module; the last bound of a module is the strictest
    too_new: dict[str, str] = {}
    for_numpy_1: list[str] = []
    half = [DISTRIBUTIONS.get(n, n) for n in _names(command) if versions.get(n) == HALF]
    for need in command.needs:
        name, bounds = _parsed(need)
        if name not in versions:
            missing.append(DISTRIBUTIONS.get(name, name))
            continue
        for sign, bound in bounds:
            if _violates(versions[name], sign, bound):
                (too_old if sign == ">=" else too_new)[name] = f"{sign}{bound}"
        if _needs_numpy_1(name, versions):
            for_numpy_1.append(_named(name, versions))

    reasons = []
    if too_old:
        needed = ", ".join(f"{DISTRIBUTIONS.get(n, n)}{bound}" for n, bound in too_old.items())
        have = ", ".join(_named(name, versions) for name in too_old)
        reasons.append(f"needs {needed} (has {have}): use an environment of its own, see {PAGE}")
    if too_new:
        needed = " ".join(f"'{DISTRIBUTIONS.get(n, n)}{bound}'" for n, bound in too_new.items())
        have = ", ".join(_named(name, versions) for name in too_new)
        reasons.append(f"{have} is too new: pip install {needed}")
    if for_numpy_1:
        have = ", ".join(dict.fromkeys(for_numpy_1))
        reasons.append(f"numpy {versions['numpy']} is too new for {have}: pip install 'numpy<2'")
    if half:
        names = ", ".join(half)
        way_out = f"pip install --force-reinstall {' '.join(half)}"
        reasons.append(f"files of {names} are missing: {way_out}")
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        ours = command.extra is not None
        way_out = installs(command.extra or "") if ours else "see DataComp's requirements.txt"
        reasons.append(f"{names} not installed: {way_out}")
    return reasons


def table(versions: Versions, installs: Callable[[str], str] = install_command) -> list[str]:
    """Return lines of a table that says for each command that it runs, or why it does not."""
    width = max(len(command.name) for command in COMMANDS)
    lines = []
    for command in COMMANDS:
        reasons = problems(command, versions, installs)
        lines.append(f"  {command.name.ljust(width)}  {'; '.join(reasons) or 'OK'}")
    return lines


def heading(versions: Versions) -> str:
    """Return a line that lists the environment's versions."""
    main = ("numpy", "pandas", "pyarrow", "torch", "open_clip", "webdataset")
    named = [_named(name, versions) for name in main if name in versions]
    packages = ", ".join([f"Python {platform.python_version()}", *named])
    return f"in this environment, by its versions ({packages}):"


def _named(name: str, versions: Versions) -> str:
    return f"{DISTRIBUTIONS.get(name, name)} {versions[name]}".strip()


def _names(command: Command) -> list[str]:
    """Return the modules that a command needs."""
    return list(dict.fromkeys(_parsed(need)[0] for need in command.needs))


def _parsed(need: str) -> tuple[str, list[tuple[str, str]]]:
    """Split a requirement: `a>=1,<=2` becomes ("a", [(">=", "1"), ("<=", "2")])."""
    match = _REQUIREMENT.fullmatch(need)
    assert match is not None, need
    return match[1], re.findall(r"([<>]=?)([\d.]+)", match[2])


def _violates(version: str, sign: str, bound: str) -> bool:
    """Return whether a version is outside a bound. An unknown version is not."""
    have, limit = release(version), release(bound)
    if not have:
        return False
    return have < limit if sign == ">=" else have > limit or (sign == "<" and have == limit)


def _needs_numpy_1(name: str, versions: Versions) -> bool:
    numpy, have = release(versions.get("numpy", "")), release(versions[name])
    return name in _FOR_NUMPY_2 and numpy >= (2,) and () < have < release(_FOR_NUMPY_2[name])
