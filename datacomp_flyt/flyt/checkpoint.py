"""Checkpoints of FLYT training: one file with the whole state, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from datacomp_flyt.errors import InputError, first_line
from datacomp_flyt.files.checkpoint_file import read_content
from datacomp_flyt.files.output_files import atomic_write

NAME = "checkpoint.pt"


def save_checkpoint(
    directory: Path, step: int, settings: dict[str, Any], state: dict[str, Any]
) -> None:
    """Replace the folder's checkpoint.

    Args:
        directory: output folder of the training.
        step: number of steps done.
        settings: settings that determine the result; `load_checkpoint` compares them.
        state: tensors, numbers, lists and dicts.
    """
    content = {"step": step, "settings": json.dumps(settings), "state": state}
    with atomic_write(directory / NAME) as file:
        torch.save(content, file)


def load_checkpoint(directory: Path, settings: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Return the number of steps done and the state; None if there is no checkpoint.

    Raises:
        InputError: the checkpoint is of a run with other settings, or damaged.
    """
    path = directory / NAME
    if not path.exists():
        return None
    try:
        content = read_content(path, str(path), torch.from_numpy)
    except InputError as error:
        raise type(error)(f"{error}; or start again in another --output_dir") from None
    try:
        then = json.loads(content["settings"])
        step, state = int(content["step"]), content["state"]
    except Exception as error:  # the file has another layout
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): start again in another --output_dir"
        ) from None
    now = json.loads(json.dumps(settings))
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            raise InputError(
                f"{path} is of a run with --{name} {then.get(name)}, not {now.get(name)}: go on "
                "with the same flags, or start in another --output_dir"
            )
    return step, state
