"""`python -m baselines_plugin`: DataComp's `baselines.py` with our methods and no checkout."""

from __future__ import annotations

import argparse

from datacomp_flyt.exits import Parser, running

PROGRAM = "python -m baselines_plugin"


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of `python -m baselines_plugin`."""
    from baselines_plugin.flags import add_arguments
    from datacomp_flyt.selection.registry import method_names

    parser = Parser(
        prog=PROGRAM,
        description="Select a DataComp subset with FLYT's methods. The output is a .npy file of "
        "sorted uids, repeats kept, for DataComp's resharder.",
    )
    parser.add_argument(
        "--name", required=True, choices=method_names(), metavar="NAME", help="the method, see FLYT"
    )
    add_arguments(parser)
    return parser


def main() -> None:
    """Run the command. Heavy imports happen after the handler of Ctrl-C is installed."""
    with running(PROGRAM):
        from baselines_plugin.run import run_if_ours

        run_if_ours(build_parser().parse_args(), PROGRAM)


if __name__ == "__main__":
    main()
