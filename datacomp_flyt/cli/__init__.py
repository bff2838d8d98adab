"""`datacomp-flyt COMMAND`: one file of this folder a command."""

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
"""Each command is a module of this folder, imported on demand, since it may need packages that
other commands do not. The module's docstring is the command's help; it has
`add_arguments` and `run`.

`add_arguments` also gets the command line's words, since some flags add other flags.
"""


def command_module(name: str) -> ModuleType:
    """Import the module of a command."""
    return importlib.import_module(f"datacomp_flyt.cli.{name}")


def main(argv: list[str] | None = None) -> None:
    """Run one command; its exit code is 0, 1 where the answer is no, or one of `exits`."""
    argv = sys.argv[1:] if argv is None else argv
    asked = next((word for word in argv if not word.startswith("-")), None)
    with running(f"datacomp-flyt {asked}" if asked in COMMANDS else "datacomp-flyt") as command:
        args = _parser(asked, argv).parse_args(argv)
        command.flags = vars(args)
        sys.exit(command_module(args.command).run(args))


def _parser(asked: str | None, argv: list[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="datacomp-flyt",
        description="FLYT for DataComp. Selection itself is `python baselines.py --name m_flyt` "
        "in a patched DataComp checkout, or `python -m baselines_plugin` without one.",
    )
    parser.add_argument("--version", action="version", version=f"datacomp-flyt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        if asked not in (None, name):
            commands.add_parser(name)
            continue
        with needs_extra():
            module = command_module(name)
        text = (module.__doc__ or "").split("\n")[0]
        command = commands.add_parser(name, help=text, description=text)
        if name == asked:
            module.add_arguments(command, argv)
    return parser
