"""Finds the state dict in a checkpoint, and the model's own names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from datacomp_flyt.files.torch_pickle import (
    SAVE_THE_STATE_DICT,
    Data,
    StoredTensor,
    TorchFileError,
    UnsupportedTensor,
)

_STATE_DICTS = (
    "state_dict", "model_state_dict", "model", "module",
    "state_dict_ema", "ema_state_dict", "model_ema", "ema",
)  # fmt: skip
_OUTER_WRAPPERS = (
    *("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."),
    *("_forward_module.", "model."),  # of Lightning
)
_INNER_WRAPPERS = re.compile(
    r"\.(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)"
)
_AVERAGED = "n_averaged"  # the step counter that torch's AveragedModel saves beside the model


def find_state_dict(content: Any) -> dict[Any, Any]:
    """Return the dict of tensors inside a checkpoint.

    If a file has both, the model's own weights are taken and not their moving average (EMA).

    Raises:
        TorchFileError: the file holds none, or only under unusual keys.
    """
    if (state := _search(content)) is not None:
        return state
    if isinstance(content, StoredTensor | UnsupportedTensor):
        raise TorchFileError(f"it holds no state dict but one tensor: {SAVE_THE_STATE_DICT}")
    if not isinstance(content, dict):
        kind = content.name if isinstance(content, Data) else type(content).__name__
        raise TorchFileError(f"it holds no state dict but a {kind}: {SAVE_THE_STATE_DICT}")
    if others := [str(key) for key, value in content.items() if _search(value) is not None]:
        raise TorchFileError(
            f"it holds no state dict under a usual key but some named {', '.join(others[:5])}: "
            "save one of them as {'state_dict': ...}"
        )
    raise TorchFileError(f"it holds no state dict of tensors: {SAVE_THE_STATE_DICT}")


def _search(content: Any, depth: int = 3) -> dict[Any, Any] | None:
    """Return the dict of tensors under the usual keys, such as {"model": {"state_dict": ...}}."""
    if not isinstance(content, dict) or not depth:
        return None
    for key in _STATE_DICTS:
        if (state := _search(content.get(key), depth - 1)) is not None:
            return state
    holds_tensors = any(isinstance(v, StoredTensor | UnsupportedTensor) for v in content.values())
    return content if holds_tensors else None


def unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """Return the model's own name of each tensor, without the prefixes of wrappers.

    DistributedDataParallel adds the prefix `module.` to every name, and `torch.compile` the prefix
    `_orig_mod.`; a model wrapped in both has both, the outer one first. If only a part of a model
    is compiled, `_orig_mod` is inside its names. A prefix is removed only if all names have it.

    Raises:
        TorchFileError: only some names have such a prefix, or two tensors would get one name.
    """
    own = {name: name for name in names if name != _AVERAGED}
    while prefix := next(
        (p for p in _OUTER_WRAPPERS if own and all(n.startswith(p) for n in own.values())), None
    ):
        own = {stored: name.removeprefix(prefix) for stored, name in own.items()}
    for prefix in _OUTER_WRAPPERS[:2]:  # of wrappers that rename every tensor of a model
        if count := sum(name.startswith(prefix) for name in own.values()):
            raise TorchFileError(
                f"only {count} of its {len(own)} tensors have a name with {prefix} before it, as "
                "if two models were put together: save the state dict of one"
            )
    own = {stored: _INNER_WRAPPERS.sub("", name) for stored, name in own.items()}
    if len(set(own.values())) < len(own):
        raise TorchFileError(
            "two of its tensors have the same name without the prefixes, as if a compiled model "
            "and the plain one were saved together: save the state dict of one"
        )
    return own
