"""The command line `datacomp-flyt COMMAND`; each command is a module of this folder."""

from __future__ import annotations

import argparse
import importlib
import sys
from types import ModuleType

from datacomp_flyt import __version__
from datacomp_flyt.exits import Parser, running
from datacomp_flyt.installation import needs_extra

COMMANDS = (
    "install",
    "manifest",
    "available",
    "embed",
    "score",
    "train_classifier",
    "train",
    "train_clip",
    "self_filter",
    "check",
    "check_parts",
    "report",
    "demo",
)
"""The names of the commands, which are the names of their modules.

A module is imported on demand, since it may need packages that other commands do not. The first
line of its docstring is the command's help. Its `add_arguments` adds the flags to a parser; it also
gets the words of the command line, since some flags add other flags. Its `run` calls the function
of the command and returns the exit code.
"""


def command_module(name: str) -> ModuleType:
    """Import the module of a command."""
    return importlib.import_module(f"datacomp_flyt.cli.{name}")


def main(argv: list[str] | None = None) -> None:
    """Run a command. The exit code is 0, 1 if the answer is no, or one of `exits`."""
    argv = sys.argv[1:] if argv is None else argv
    requested = next((word for word in argv if not word.startswith("-")), None)
    with running(
        f"datacomp-flyt {requested}" if requested in COMMANDS else "datacomp-flyt"
    ) as command:
        args = _parser(requested, argv).parse_args(argv)
        command.flags = vars(args)
        sys.exit(command_module(args.command).run(args))


def _parser(requested: str | None, argv: list[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="datacomp-flyt",
        description="FLYT for DataComp. Selection itself is `python baselines.py --name m_flyt` "
        "in a patched DataComp checkout, or `python -m baselines_plugin` without one.",
    )
    parser.add_argument("--version", action="version", version=f"datacomp-flyt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        if requested not in (None, name):
            commands.add_parser(name)
            continue
        with needs_extra():
            module = command_module(name)
        text = (module.__doc__ or "").split("\n")[0]
        command = commands.add_parser(name, help=text, description=text)
        if name == requested:
            module.add_arguments(command, argv)
    return parser
