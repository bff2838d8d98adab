"""A tour over the embedded pool: select with several methods, check, look."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.errors import InputError


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "--work_dir", type=Path, default=Path("demo_output"), help="where its files go"
    )


def run(args: argparse.Namespace) -> int:
    from datacomp_flyt.demo import tour  # builds the parser of all methods

    try:
        args.work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--work_dir {args.work_dir} cannot be made ({error.strerror})") from None
    return tour.run(args.work_dir)
