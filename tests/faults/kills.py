"""Kills the long commands at random moments and reports every difference to undisturbed runs.

    python -m tests.faults.kills --kills 200 --seed 0

The output is a JSON line with the number of kills by command and killed process, and of faults:

- mismatches: the files of a finished run differ from those of an undisturbed run.
- partial files: a file under a final name is incomplete.
- failures: a command that was started again failed, or a command failed without a kill.
- hangs: a command, or one of its processes, did not end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.measure import machine
from tests.faults.commands import COMMANDS
from tests.faults.killing import Findings, end_all, kill_often, undisturbed

KINDS = ("mismatches", "partial files", "failures", "hangs")


def kill_commands(
    names: list[str], kills: int, seed: int, folder: Path, at_once: int
) -> tuple[dict[str, Findings], dict[str, float]]:
    """Return the findings of each command, and its seconds without kills."""
    shares = {name: len(range(index, kills, len(names))) for index, name in enumerate(names)}
    with (
        tqdm(total=kills, unit="kill", desc="kills", file=sys.stderr) as bar,
        ThreadPoolExecutor(at_once) as executor,
    ):

        def kill_one(name: str) -> tuple[Findings, float]:
            command_folder = folder / name
            command_folder.mkdir(parents=True)
            command = COMMANDS[name](command_folder)
            try:
                whole = undisturbed(command, command_folder / "run")
            except RuntimeError as error:  # the other commands go on
                findings = Findings()
                findings.note("failures", str(error))
                return findings, 0.0
            rng = random.Random(f"{seed} {name}")
            found = kill_often(
                command, command_folder / "run", whole, shares[name], rng, bar.update
            )
            return found, whole.seconds

        # start the longest command first
        futures = {name: executor.submit(kill_one, name) for name in reversed(names)}
        found = {name: futures[name].result() for name in names}
    return {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()}


def _end(*_: object) -> None:
    end_all()
    os._exit(1)


def main() -> int:
    """Run the command above; the exit code is 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--at_once", type=int, default=2, help="commands that run side by side")
    args = parser.parse_args()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, _end)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills.") as folder:
        findings, seconds = kill_commands(
            args.commands, args.kills, args.seed, Path(folder), args.at_once
        )
    wrong = {
        kind: [text for each in findings.values() for text in each.wrong.get(kind, [])]
        for kind in KINDS
    }
    for kind, texts in wrong.items():
        for text in texts:
            print(f"{kind}: {text}", file=sys.stderr)
    result = {
        "benchmark": "kills",
        "seed": args.seed,
        "kills": sum(sum(each.kills.values()) for each in findings.values()),
        "kills by command": {name: dict(each.kills) for name, each in findings.items()},
        "runs ended and compared": sum(each.ended for each in findings.values()),
        **{kind: len(texts) for kind, texts in wrong.items()},
        "seconds of a run": {name: round(taken, 1) for name, taken in seconds.items()},
        "seconds": round(time.monotonic() - began),
        "machine": machine(),
    }
    print(json.dumps(result))
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
