"""`python -m baselines_plugin`: DataComp's `baselines.py` with our methods and no checkout."""

from __future__ import annotations

import argparse

from datacomp_flyt.exits import Parser, running

PROGRAM = "python -m baselines_plugin"


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m baselines_plugin`."""
    from baselines_plugin.flags import add_arguments
    from baselines_plugin.registry import method_names

    parser = Parser(
        prog=PROGRAM,
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
    from baselines_plugin.registry import METHODS
    from baselines_plugin.run import run

    args = build_parser().parse_args(flags)
    run(METHODS[args.name], args)


def main() -> None:
    """Run the command. Heavy imports happen after the handler of Ctrl-C is installed."""
    with running(PROGRAM):
        from baselines_plugin.run import run_if_ours

        run_if_ours(build_parser().parse_args(), PROGRAM)


if __name__ == "__main__":
    main()
