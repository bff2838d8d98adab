"""Learn a scoring model (M-FLYT, E-FLYT); under torchrun: -m datacomp_flyt.flyt.train."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.installation import needs_extra


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """The flags of training."""
    with needs_extra("train"):
        from datacomp_flyt.flyt.flags import add_arguments as add
    add(parser)


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is 0."""
    with needs_extra("train"):
        from datacomp_flyt.flyt.train import run as train
    return train(args)
