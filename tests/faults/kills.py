"""Kills the long commands at random moments and reports every visible effect.

    python -m tests.faults.kills --kills 200 --seed 0

Prints a JSON line: kills by command and by whom they hit, and what was wrong: `mismatches`, runs
that did not end as an undisturbed one; `partial files` under a final name; `failures` of a command
that was given again, or without any kill; `hangs`, of a command or of processes that outlive it.
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
    """The findings of each command, and its seconds without kills."""
    shares = {name: len(range(number, kills, len(names))) for number, name in enumerate(names)}
    with (
        tqdm(total=kills, unit="kill", desc="kills", file=sys.stderr) as bar,
        ThreadPoolExecutor(at_once) as executor,
    ):

        def one(name: str) -> tuple[Findings, float]:
            place = folder / name
            place.mkdir(parents=True)
            command = COMMANDS[name](place)
            try:
                whole = undisturbed(command, place / "run")
            except RuntimeError as error:  # the others go on
                findings = Findings()
                findings.note("failures", str(error))
                return findings, 0.0
            rng = random.Random(f"{seed} {name}")
            found = kill_often(command, place / "run", whole, shares[name], rng, bar.update)
            return found, whole.seconds

        # the longest first
        asked = {name: executor.submit(one, name) for name in reversed(names)}
        found = {name: asked[name].result() for name in names}
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
        found, seconds = kill_commands(
            args.commands, args.kills, args.seed, Path(folder), args.at_once
        )
    wrong = {
        kind: [text for each in found.values() for text in each.wrong.get(kind, [])]
        for kind in KINDS
    }
    for kind, texts in wrong.items():
        for text in texts:
            print(f"{kind}: {text}", file=sys.stderr)
    result = {
        "benchmark": "kills",
        "seed": args.seed,
        "kills": sum(sum(each.kills.values()) for each in found.values()),
        "kills by command": {name: dict(each.kills) for name, each in found.items()},
        "runs ended and compared": sum(each.ended for each in found.values()),
        **{kind: len(texts) for kind, texts in wrong.items()},
        "seconds of a run": {name: round(taken, 1) for name, taken in seconds.items()},
        "seconds": round(time.monotonic() - began),
        "machine": machine(),
    }
    print(json.dumps(result))
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
