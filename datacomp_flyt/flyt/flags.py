"""Build the parser of FLYT training; its flags are the fields of `TrainingConfig`."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from datacomp_flyt.flyt.training_config import TrainingConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of training, in groups, with the defaults of `TrainingConfig`."""
    hints = get_type_hints(TrainingConfig)
    group: Any = parser
    for option in fields(TrainingConfig):
        if title := option.metadata["group"]:
            group = parser.add_argument_group(title)
        words: dict[str, Any] = {"help": option.metadata["help"]}
        if option.default is MISSING:
            words["required"] = True
        else:
            words["default"] = option.default
        if option.metadata["choices"]:
            words["choices"] = option.metadata["choices"]
        group.add_argument(
            f"--{option.name}", **words, **_value(hints[option.name], option.default)
        )


def _value(hint: Any, default: object) -> dict[str, Any]:
    """Translate a type, such as `int | None` or `tuple[str, ...]`, into options of argparse."""
    if hint is bool:
        return {"action": "store_true"}
    kinds = get_args(hint) or (hint,)
    if tuple[str, ...] in (hint, *kinds):
        return {"nargs": "*" if default == () else "+"}
    return {"type": next((kind for kind in (int, float) if kind in kinds), str)}
