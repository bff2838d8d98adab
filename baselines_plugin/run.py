"""Runs a method of `--name` with the values of the flags."""

from __future__ import annotations

import argparse
import sys

from baselines_plugin.flags import flag_names
from datacomp_flyt.errors import InputError
from datacomp_flyt.exits import running
from datacomp_flyt.selection.registry import method_names
from datacomp_flyt.selection.select import ARGUMENTS, NoArgument, select

_HOST_ONLY = {"threshold", "arch", "image_based_scale"}  # flags of DataComp's own methods


def run_if_ours(args: argparse.Namespace, program: str = "baselines.py") -> None:
    """Run `--name` and end the program, if it is one of our methods; else return.

    Raises:
        SystemExit: 0, or see `exits.running`.
    """
    if args.name in method_names():
        with running(program) as command:
            command.flags = vars(args)
            run(args)
        sys.exit(0)


def run(args: argparse.Namespace) -> None:
    """Select as the flags say.

    Raises:
        InputError: something given is wrong; no file is written then.
    """
    flags = vars(args)
    for flag in sorted(_HOST_ONLY & set(flags)):
        if flags[flag] not in (None, False):
            raise InputError(f"--{flag} has no meaning for --name {args.name}: leave it out")
    given = {flag: flags[flag] for flag in flag_names() if flag in flags}
    try:
        select(args.name, **{ARGUMENTS.get(flag, flag): value for flag, value in given.items()})
    except NoArgument as error:
        raise InputError(error.flag_sentence) from None
