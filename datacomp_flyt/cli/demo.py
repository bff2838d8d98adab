"""A tour: a noisy pool, scores, M-FLYT, a subset, CLIP models trained on it, a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.demo.run_demo import run_demo


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("demo_output"),
        help="folder for all files; steps that are done there are not run again "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="pools, each with models of its own (default: 1)"
    )
    parser.add_argument(
        "--noise", type=float, default=0.5, help="share of spoiled pairs (default: %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only select from the embedded pool of emoji: seconds, and no torch",
    )


def run(args: argparse.Namespace) -> int:
    result = run_demo(args.work_dir, seeds=args.seeds, noise=args.noise, quick=args.quick)
    return 1 if result.problems else 0
