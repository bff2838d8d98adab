"""Learn a scoring model (M-FLYT, E-FLYT); under torchrun: -m datacomp_flyt.flyt.train."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.installation import needs_extra


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the flags of training."""
    with needs_extra("train"):
        from datacomp_flyt.flyt.flags import add_arguments as add
    add(parser)


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is 0."""
    with needs_extra("train"):
        from datacomp_flyt.flyt.train import train_with
        from datacomp_flyt.flyt.training_config import TrainingConfig
    config = TrainingConfig(**{name: v for name, v in vars(args).items() if name != "command"})
    vars(args).update(vars(config))  # advice on saving memory also names options of the preset
    train_with(config)
    return 0
