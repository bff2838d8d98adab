"""Finds the installed trainer of open_clip, and checks that the hook supports it.

The trainer has no plugin interface and no flag for a loss. In every version, three of its functions
are looked up by name when they are called, and the hook replaces these: `main.get_data`,
`main.create_loss` (`main.create_task` from 4.2 on) and `data.tarfile_to_samples_nothrow`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.installation import install_command

FIRST, LAST = "2.16.1", "3.3.0"
DEVELOPMENT = "4.2.0.dev0"
PACKAGES = ("open_clip_train", "training")
HOOKED = "datacomp_flyt_hook"  # set in the trainer's `data` while the hook is installed
_RENAMED = (2, 26)  # the first release with `open_clip_train`

_ARGUMENTS = {
    "tarfile_to_samples_nothrow": ("src", "handler"),
    "get_data": ("args", "preprocess_fns", "epoch", "tokenizer"),
    "create_loss": ("args",),
    "create_task": ("args", "model"),
    "get_logits": ("self", "image_features", "text_features", "logit_scale"),
    "get_ground_truth": ("self", "device", "num_logits"),
    "forward": ("self", "image_features", "text_features", "logit_scale", "output_dict"),
}
_LATER_ARGUMENTS = {"naflex_data_config", "dist_model", "logit_bias"}


@dataclass(frozen=True)
class Trainer:
    """The installed trainer.

    Attributes:
        version: the version of open_clip_torch.
        package: `open_clip_train`, or `training` before 2.26.
        data, main: modules of the package.
        makes_tasks: whether the loss belongs to a task and batches are dicts, as from 4.2 on.
    """

    version: str
    package: str
    data: ModuleType
    main: ModuleType
    makes_tasks: bool

    @property
    def loss_maker(self) -> str:
        """The name of the function in `main` that makes the loss."""
        return "create_task" if self.makes_tasks else "create_loss"

    @property
    def drops_empty_captions(self) -> bool:
        """True if examples with an empty caption are dropped before they are tokenised."""
        return hasattr(self.data, "FilterNonEmptyText")


def find_trainer(allow_unknown_version: bool = False) -> Trainer:
    """Find the trainer of the installed open_clip.

    Args:
        allow_unknown_version: accept versions that were not tested; all other checks remain.

    Raises:
        InputError: open_clip or its trainer is missing, the version is not supported, or the
            functions are not those that the hook can replace.
    """
    version = _version()
    if not allow_unknown_version and not _is_known(version):
        raise InputError(
            f"open_clip_torch {version} is not supported by the hook, which supports {FIRST} to "
            f"{LAST} and {DEVELOPMENT}: install one of these, or try --allow_unknown_version"
        )
    package = package_of(version)
    if not _ships_trainer(package):
        raise InputError(
            f"the trainer of open_clip_torch {version} is missing ({package}.main): "
            f"{install_command('train', 'open_clip')}"
        )
    try:
        data = importlib.import_module(f"{package}.data")
        main = importlib.import_module(f"{package}.main")
    except ImportError as error:
        raise InputError(
            f"{package} cannot be imported ({error}): pip install 'open_clip_torch[training]'"
        ) from None
    if hasattr(data, HOOKED):
        raise InputError(f"the hook is already installed in {package}: remove() that one first")
    trainer = Trainer(version, package, data, main, hasattr(main, "create_task"))
    _check(trainer)
    return trainer


def package_of(version: str) -> str:
    """Return the name of the trainer's package in a release."""
    numbers = _numbers(version)
    return "training" if numbers is not None and numbers < _RENAMED else "open_clip_train"


def _version() -> str:
    try:
        open_clip = importlib.import_module("open_clip")
        # some releases have no __version__; a checkout on the path has no metadata
        return str(getattr(open_clip, "__version__", None) or _installed_version())
    except ImportError as error:
        raise InputError(
            f"open_clip cannot be imported ({error}): {install_command('train', 'open_clip')}"
        ) from None


def _installed_version() -> str:
    return importlib.metadata.version("open_clip_torch")


def _is_known(version: str) -> bool:
    first, last, numbers = _numbers(FIRST), _numbers(LAST), _numbers(version)
    assert first is not None
    assert last is not None
    return version == DEVELOPMENT or (numbers is not None and first <= numbers <= last)


def _numbers(version: str) -> tuple[int, ...] | None:
    """Return 2.16.1 as (2, 16, 1); None for a version that is no release."""
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError:
        return None


def _ships_trainer(package: str) -> bool:
    """Return whether the package has the trainer; any folder may be called `training`."""
    if importlib.util.find_spec(package) is None:
        return False
    return all(importlib.util.find_spec(f"{package}.{part}") for part in ("data", "main"))


def _check(trainer: Trainer) -> None:
    data, main = trainer.data, trainer.main
    tars = _function(trainer, data, "tarfile_to_samples_nothrow")
    get_data = _function(trainer, main, "get_data")
    make_loss = _function(trainer, main, trainer.loss_maker)
    for function in (tars, get_data, make_loss):
        check_arguments(function, trainer)
    _check_calls(trainer, _function(trainer, data, "get_wds_dataset"), tars)
    for function in (get_data, make_loss):
        _check_calls(trainer, _function(trainer, main, "main"), function)


def check_arguments(function: Callable[..., Any], trainer: Trainer) -> None:
    """Raise InputError unless a function of open_clip has the expected parameters."""
    parameters = list(inspect.signature(function).parameters)
    name = function.__name__
    known = {*_ARGUMENTS[name], *_LATER_ARGUMENTS}
    unknown = [parameter for parameter in parameters if parameter not in known]
    missing = [parameter for parameter in _ARGUMENTS[name] if parameter not in parameters]
    if unknown or missing:
        raise InputError(
            f"{name} of open_clip_torch {trainer.version} takes ({', '.join(parameters)}), which "
            f"the hook does not support: install open_clip_torch {FIRST} to {LAST}"
        )


def _function(trainer: Trainer, module: ModuleType, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        raise InputError(
            f"{module.__name__} of open_clip_torch {trainer.version} has no function {name}: "
            f"install open_clip_torch {FIRST} to {LAST}"
        )
    return function


def _check_calls(
    trainer: Trainer, caller: Callable[..., Any], function: Callable[..., Any]
) -> None:
    if function.__name__ not in caller.__code__.co_names:
        raise InputError(
            f"{caller.__name__} of open_clip_torch {trainer.version} does not call "
            f"{function.__name__}, which the hook replaces: install open_clip_torch {FIRST} "
            f"to {LAST}"
        )
