"""Do the parts of a subset that was resharded in several runs add up? Exit code 1 if not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.datacomp.resharded_parts import check_parts
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.errors import InputError
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "parts", nargs="+", type=Path, metavar="PART_DIR", help="--output-dir of a resharder run"
    )
    parser.add_argument("--subset", type=Path, required=True, help="the .npy file of all runs")
    parser.add_argument(
        "--shards_dir",
        help="the pool's tars, a folder or a pattern: tells images that the pool has not from "
        "shards that were left out",
    )
    parser.add_argument("--num_workers", type=int, default=default_num_workers())


def run(args: argparse.Namespace) -> int:
    """Say what the parts hold; 0 if they add up, else 1.

    Raises:
        InputError: something cannot be read, or a part is not whole.
    """
    if args.num_workers < 1:
        raise InputError(f"--num_workers is {args.num_workers}, wanted 1 or more")
    engine = ProcessEngine(args.num_workers, "cpu")
    with engine:
        report, lost = check_parts(args.subset, args.parts, engine)
        if len(lost.uids):
            if args.shards_dir is None:
                report.problems.append(
                    f"{lost}: give --shards_dir to know whether the pool has images of them"
                )
            elif left_out := lost.find_in_pool(_tars(args.shards_dir), engine):
                report.problems.append(f"{lost}, and {left_out}")
            else:
                report.facts.append(f"{lost}: the pool has no image of any")
    for fact in report.facts:
        say(f"  {fact}")
    for problem in report.problems:
        say(f"  WRONG: {problem}")
    say("the parts do not add up" if report.problems else "the parts add up")
    return 1 if report.problems else 0


def _tars(shards_dir: str) -> list[str]:
    with needs_extra("train"):
        from datacomp_flyt.tars.shards import list_shards
    return list_shards(shards_dir, "--shards_dir")
