"""`python -m baselines_plugin`: DataComp's `baselines.py` with our methods and no checkout."""

from __future__ import annotations

import argparse

from baselines_plugin.flags import add_arguments
from baselines_plugin.registry import METHODS, method_names
from baselines_plugin.run import run, run_if_ours


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m baselines_plugin`."""
    parser = argparse.ArgumentParser(
        prog="python -m baselines_plugin",
        description="Select a DataComp subset with FLYT's methods. The output is a .npy file of "
        "sorted uids, repeats kept, for DataComp's resharder.",
    )
    parser.add_argument("--name", required=True, choices=method_names(), help="the method")
    add_arguments(parser)
    return parser


def select(flags: list[str]) -> None:
    """Run one method from Python, with its flags as on the command line.

    Raises:
        InputError: something given is wrong; no file is written then.
    """
    args = build_parser().parse_args(flags)
    run(METHODS[args.name], args)


if __name__ == "__main__":
    parser = build_parser()
    run_if_ours(parser.parse_args(), parser.prog)
