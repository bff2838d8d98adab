"""Is a subset valid for DataComp's resharder and the leaderboard? Exit code 1 if not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.datacomp.scales import SCALES
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.subset import check_subset
from datacomp_flyt.streams import say
from datacomp_flyt.tars.flags import add_available_arguments
from datacomp_flyt.tars.image_list import available_images
from datacomp_flyt.threads import default_num_workers


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument("subset", type=Path, help="the .npy file")
    parser.add_argument("--metadata_dir", help="the pool, to check that every uid is in it")
    add_available_arguments(parser.add_argument)
    parser.add_argument("--scale", choices=list(SCALES), help="say how often training sees it")
    parser.add_argument("--num_workers", type=int, default=default_num_workers())


def run(args: argparse.Namespace) -> int:
    if args.num_workers < 1:
        raise InputError(f"--num_workers is {args.num_workers}, wanted 1 or more")
    pool_uids = read_pool(args.metadata_dir, args.num_workers).uids if args.metadata_dir else None
    num_samples = SCALES[args.scale].num_samples if args.scale else None
    available = available_images(args.available, args.shards_dir, args.num_workers)
    report = check_subset(args.subset, pool_uids, num_samples, available)
    say(args.subset)
    say(f"  {args.subset.stat().st_size:,} bytes, sha256 {file_digest(args.subset)}")
    for fact in report.facts:
        say(f"  {fact}")
    for warning in report.warnings:
        say(f"  WARNING: {warning}")
    for problem in report.problems:
        say(f"  NOT VALID: it {problem}")
    if pool_uids is None and not report.problems:
        say("  not checked: whether its uids are in the pool (give --metadata_dir)")
    if available is None and not report.problems:
        say("  not checked: whether its images are on disk (give --available or --shards_dir)")
    say("not valid" if report.problems else "valid")
    return 1 if report.problems else 0
