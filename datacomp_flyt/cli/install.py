"""Put the plugin's lines into a DataComp checkout, check them and the environment, or revert."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.datacomp.checkout_patch import check, install, load_patches, revert
from datacomp_flyt.datacomp.environments import heading, table, versions_here
from datacomp_flyt.streams import say


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="a DataComp checkout")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check",
        action="store_true",
        help="only say whether the lines are there, and which commands run in this environment",
    )
    action.add_argument("--revert", action="store_true", help="take the lines out again")


def run(args: argparse.Namespace) -> int:
    patches = load_patches()
    if args.check:
        there = check(args.directory, patches)
        versions = versions_here()
        say(
            f"{args.directory}: {'installed' if there else 'not installed'}",
            heading(versions),
            *table(versions),
        )
        return 0 if there else 1
    if args.revert:
        done = revert(args.directory, patches)
        say(f"{args.directory}: {'reverted' if done else 'nothing to revert'}")
        return 0
    done = install(args.directory, patches)
    say(f"{args.directory}: {'installed' if done else 'installed already'}")
    say("try: python baselines.py --help")
    return 0
