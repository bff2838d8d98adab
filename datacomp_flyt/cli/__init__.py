"""`datacomp-flyt COMMAND`: one file of this folder a command."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from datacomp_flyt import __version__
from datacomp_flyt.cli import (
    available,
    check,
    check_parts,
    demo,
    embed,
    install,
    manifest,
    report,
    score,
    self_filter,
    train,
    train_classifier,
    train_clip,
)
from datacomp_flyt.errors import exit_on_input_error

COMMANDS: dict[str, ModuleType] = {
    "install": install,
    "manifest": manifest,
    "available": available,
    "embed": embed,
    "score": score,
    "train_classifier": train_classifier,
    "train": train,
    "train_clip": train_clip,
    "self_filter": self_filter,
    "check": check,
    "check_parts": check_parts,
    "report": report,
    "demo": demo,
}
"""Each module's docstring is the command's help; it has `add_arguments` and `run`.

`add_arguments` gets the words of the command line too, since some flags bring others.
"""


def main(argv: list[str] | None = None) -> None:
    """Run one command; its exit code is 0, 1 where the answer is no, 2 where the input is wrong."""
    parser = argparse.ArgumentParser(
        prog="datacomp-flyt",
        description="FLYT for DataComp. Selection itself is `python baselines.py --name m_flyt` "
        "in a patched DataComp checkout, or `python -m baselines_plugin` without one.",
    )
    parser.add_argument("--version", action="version", version=f"datacomp-flyt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    asked = next((word for word in argv if not word.startswith("-")), None)
    with exit_on_input_error(f"datacomp-flyt {asked}"):
        for name, module in COMMANDS.items():
            text = (module.__doc__ or "").split("\n")[0]
            command = commands.add_parser(name, help=text, description=text)
            if name == asked:  # others may want packages that are not installed
                module.add_arguments(command, argv)
        args = parser.parse_args(argv)
        sys.exit(COMMANDS[args.command].run(args))
