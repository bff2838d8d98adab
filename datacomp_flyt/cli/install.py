"""Insert the plugin's lines into a DataComp checkout, check for them, or remove them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.datacomp.checkout_patch import install, is_installed, revert
from datacomp_flyt.datacomp.environments import heading, table, versions_here
from datacomp_flyt.streams import say


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="a DataComp checkout")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check",
        action="store_true",
        help="only say whether the lines are present, and which commands run in this environment",
    )
    action.add_argument("--revert", action="store_true", help="remove the lines")


def run(args: argparse.Namespace) -> int:
    """Install, check or revert; return 1 if `--check` finds no lines, else 0."""
    directory = args.directory
    if args.check:
        installed = is_installed(directory)
        versions = versions_here()
        say(
            f"{directory}: {'installed' if installed else 'not installed'}",
            heading(versions),
            *table(versions),
        )
        return 0 if installed else 1
    if args.revert:
        say(f"{directory}: {'reverted' if revert(directory) else 'nothing to revert'}")
        return 0
    say(f"{directory}: {'installed' if install(directory) else 'installed already'}")
    say("try: python baselines.py --help")
    return 0
