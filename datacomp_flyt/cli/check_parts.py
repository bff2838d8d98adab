"""Check that the parts of a subset resharded in several runs add up; exit code 1 if not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.datacomp.resharded_parts import check_parts
from datacomp_flyt.streams import say


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "parts", nargs="+", metavar="PART_DIR", help="--output-dir of a resharder run"
    )
    parser.add_argument("--subset", required=True, help="the .npy file of all runs")
    parser.add_argument(
        "--shards_dir",
        help="the pool's tars, a folder or a pattern: they tell images that the pool lacks from "
        "shards that no run has processed",
    )
    parser.add_argument("--num_workers", type=int, help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Print what the parts hold; return 0 if they add up, else 1."""
    report = check_parts(
        args.subset, args.parts, shards_dir=args.shards_dir, num_workers=args.num_workers
    )
    for fact in report.facts:
        say(f"  {fact}")
    for problem in report.problems:
        say(f"  WRONG: {problem}")
    say("the parts add up" if report.valid else "the parts do not add up")
    return 0 if report.valid else 1
