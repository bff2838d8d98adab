"""Run the commands and Python blocks of README.md and docs/*.md in a home with a small pool.

    python -m tests.docs.run_pages                      # all pages, on both pools
    python -m tests.docs.run_pages --pages docs/report.md --pools lacking

Blocks are taken from the pages. `marks.py` lists the commands that do not run, with the reasons.
The shell commands of a page share one shell, and its Python blocks one namespace.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.docs.checkout import environment, make_home
from tests.docs.marks import NOT_COMMANDS, NOT_RUN, OTHER_OUTPUT, SUBSTITUTIONS
from tests.docs.pages import REPOSITORY, Block, Command, code_blocks, commands, pages

POOLS = {
    "whole": (1.0, 1.0),
    "lacking": (0.75, 0.93),
}
"""Shares of the pool that have an image and that have scores."""

TIMEOUT = 1_500  # seconds for a page
_SHELL = ". {log}/{index}.sh > {log}/{index}.txt 2>&1; echo $? > {log}/{index}.code\n"
_PYTHON = "echo {index} > {log}/requests; cat {log}/answers > {log}/{index}.code\n"
_START_PYTHON = """\
mkfifo {log}/requests {log}/answers
python -m tests.docs.run_blocks {log} &
RUNNER=$!
"""
_END_PYTHON = "echo > {log}/requests; wait $RUNNER\n"


class Result(NamedTuple):
    """The outcome of a command.

    Attributes:
        command: the command.
        state: "ran", the reason why the command does not run here, or a failure in a few words.
        error: the command's output if the command failed.
    """

    command: Command
    state: str
    error: str | None = None


def subject(command: Command) -> str:
    """The string in which patterns of `marks.py` are searched."""
    return f"{command.page}:{command.text}"


def commands_of(path: Path) -> list[Command]:
    """Commands of a page, without blocks that are marked as no commands."""
    return [
        command
        for block in code_blocks(path)
        if not any(is_no_command(block, start) for start, _ in NOT_COMMANDS)
        for command in commands(block)
    ]


def is_no_command(block: Block, start: str) -> bool:
    """Return whether a block is the one of an entry of `NOT_COMMANDS`."""
    return f"{block.page}:{block.text}".startswith(start)


def reason_not_to_run(command: Command) -> str | None:
    """Return the reason in `marks.py` why a command does not run, or None."""
    return next((why for pattern, why in NOT_RUN if re.search(pattern, subject(command))), None)


def text_to_run(command: Command) -> str:
    """The command with all substitutions."""
    text = subject(command)
    for pattern, replacement, _ in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    return text.removeprefix(f"{command.page}:")


def script_of(commands: list[Command], log: Path) -> str:
    """Write the commands to files in a folder, and return a shell script that runs the files.

    Shell commands are sourced, so that a syntax error in one does not end the page.
    """
    script = ""
    for index, command in enumerate(commands):
        if reason_not_to_run(command) is None:
            is_python = command.language == "python"
            path = log / f"{index}.{'py' if is_python else 'sh'}"
            path.write_text(text_to_run(command) + "\n")
            script += (_PYTHON if is_python else _SHELL).format(log=log, index=index)
    if any(log.glob("*.py")):
        script = _START_PYTHON.format(log=log) + script + _END_PYTHON.format(log=log)
    return script


def run_page(path: Path, home: Path) -> list[Result]:
    """Run a page's commands, one after the other, in one shell in `~/datacomp`."""
    page_commands = commands_of(path)
    with tempfile.TemporaryDirectory() as log:
        shell = subprocess.Popen(
            ["bash", "-c", script_of(page_commands, Path(log))],
            cwd=home / "datacomp",
            env=environment(home),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            shell.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        return [_result(command, Path(log), index) for index, command in enumerate(page_commands)]


def _result(command: Command, log: Path, index: int) -> Result:
    reason = reason_not_to_run(command)
    if reason is not None:
        return Result(command, reason)
    if not (log / f"{index}.code").exists():
        return Result(command, "did not end", f"not ended after {TIMEOUT} s")
    code = int((log / f"{index}.code").read_text())
    output = (log / f"{index}.txt").read_text(errors="replace")
    compared = not any(re.search(pattern, subject(command)) for pattern, _ in OTHER_OUTPUT)
    if command.output and compared:
        if command.output.rstrip() != output.rstrip():
            return Result(command, "prints something else", output)
    elif code:
        return Result(command, f"exit code {code}", output)
    return Result(command, "ran")


def marks_without_use() -> list[str]:
    """Marks and substitutions that fit no command of any page."""
    blocks = [block for path in pages() for block in code_blocks(path)]
    unused = [
        start
        for start, _ in NOT_COMMANDS
        if not any(is_no_command(block, start) for block in blocks)
    ]
    subjects = [subject(command) for path in pages() for command in commands_of(path)]
    patterns = [mark[0] for table in (NOT_RUN, OTHER_OUTPUT, SUBSTITUTIONS) for mark in table]
    return unused + [
        pattern
        for pattern in patterns
        if not any(re.search(pattern, subject) for subject in subjects)
    ]


def copy_home(source: Path, target: Path) -> Path:
    """Copy a home folder, symbolic links as links."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pages", nargs="+", type=Path, default=pages())
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    flags = parser.parse_args()
    failed = 0
    print("| command | pool | result |\n|---|---|---|")
    for pool in flags.pools:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made"
            make_home(made, *POOLS[pool])
            for index, path in enumerate(flags.pages):
                home = copy_home(made, Path(folder) / str(index))
                for result in run_page((REPOSITORY / path).resolve(), home):
                    source = f"{result.command.page}:{result.command.line}"
                    first_line = result.command.text.partition("\n")[0]
                    print(f"| {source} `{first_line}` | {pool} | {result.state} |", flush=True)
                    if result.error is not None:
                        failed += 1
                        print(result.error[-3_000:], file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
