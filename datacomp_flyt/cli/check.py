"""Check that DataComp's resharder and leaderboard accept a subset; exit code 1 if not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datacomp_flyt.datacomp.check_subset import check_subset
from datacomp_flyt.datacomp.scales import SCALES
from datacomp_flyt.streams import say
from datacomp_flyt.tars.flags import add_available_arguments


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument("subset", help="the .npy file")
    parser.add_argument("--metadata_dir", help="the pool, to check that every uid is in it")
    add_available_arguments(parser.add_argument)
    parser.add_argument("--scale", choices=list(SCALES), help="say how often training sees it")
    parser.add_argument("--num_workers", type=int, help="workers (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Print the report on a subset; return 0 if the subset is valid, else 1."""
    report = check_subset(
        args.subset,
        metadata_dir=args.metadata_dir,
        num_samples=SCALES[args.scale].num_samples if args.scale else None,
        available=args.available,
        shards_dir=args.shards_dir,
        num_workers=args.num_workers,
    )
    say(args.subset)
    for fact in report.facts:
        say(f"  {fact}")
    for warning in report.warnings:
        say(f"  WARNING: {warning}")
    for problem in report.problems:
        say(f"  NOT VALID: it {problem}")
    for check in report.not_checked:
        say(f"  not checked: {check}")
    say("valid" if report.valid else "not valid")
    return 0 if report.valid else 1
