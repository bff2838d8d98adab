"""Publish the result of a run: its last subset, and a note that the run has finished.

python -m datacomp_flyt.self_filtering.finalize --run_dir RUN --rounds 3
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.finalize")

import json
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.files.open_file import open_local
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.self_filtering.next_subset import SUBSET
from datacomp_flyt.streams import say

NOTE = "finished.json"

_FORMER = "mix"  # runs of version 0.1.0 call their subset so: RUN/mix.npy


def finalize(run_dir: Path, rounds: int) -> None:
    """Copy the last round's subset to `RUN/subset.npy`, and write `RUN/finished.json`."""
    last = run_dir / f"round_{rounds}" / SUBSET
    (run_dir / NOTE).unlink(missing_ok=True)  # it may be of fewer rounds, with another subset
    for name in (SUBSET, NOTE):
        remove_unfinished(run_dir / name)
    with atomic_write(run_dir / SUBSET) as file, last.open("rb") as source:
        while block := source.read(1 << 24):
            file.write(block)
    note = {"rounds": rounds, "subset": file_digest(run_dir / SUBSET)}
    with atomic_write(run_dir / NOTE) as file:
        file.write(json.dumps(note, indent=1).encode() + b"\n")
    say(f"saved {run_dir / SUBSET}, the subset of round {rounds}")


def final_subset(run_dir: Path) -> Path:
    """Return the path of a finished run's last subset.

    Raises:
        InputError: the folder is no run, the run has not finished, or its subset was replaced.
    """
    if not (run_dir / "round_0").is_dir():
        raise InputError(
            f"--run_dir {run_dir} is no run of `datacomp-flyt self_filter`: give its --out"
        )
    try:
        with open_local(str(run_dir / NOTE)) as file:
            note = json.loads(file.read())
        path = run_dir / (f"{_FORMER}.npy" if _FORMER in note else SUBSET)
        digest = note[path.stem]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"--run_dir {run_dir} is not finished: give the same `datacomp-flyt self_filter` again"
        ) from None
    if not path.is_file() or file_digest(path) != digest:
        last = run_dir / f"round_{note.get('rounds')}" / path.name
        raise InputError(f"{path} is not the subset that the run ended with: copy it from {last}")
    return path


def main() -> None:
    """Parse the flags and call `finalize`."""
    parser = Parser(description=__doc__)
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    finalize(args.run_dir, args.rounds)
