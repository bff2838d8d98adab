"""The result of a run: its last mix, and the note that it is there.

python -m datacomp_flyt.self_filtering.finished --run_dir RUN --rounds 3
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.finished")

import json
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.files.open_file import open_local
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.self_filtering.mix import MIX as MIX
from datacomp_flyt.streams import say

NOTE = "finished.json"


def finish(run_dir: Path, rounds: int) -> None:
    """Copy the last round's mix to `RUN/mix.npy`, and note it."""
    last = run_dir / f"round_{rounds}" / MIX
    (run_dir / NOTE).unlink(missing_ok=True)  # of fewer rounds, whose mix is about to go
    for name in (MIX, NOTE):
        remove_unfinished(run_dir / name)
    with atomic_write(run_dir / MIX) as file, last.open("rb") as source:
        while block := source.read(1 << 24):
            file.write(block)
    note = {"rounds": rounds, "mix": file_digest(run_dir / MIX)}
    with atomic_write(run_dir / NOTE) as file:
        file.write(json.dumps(note, indent=1).encode() + b"\n")
    say(f"saved {run_dir / MIX}, the mix of round {rounds}")


def final_mix(run_dir: Path) -> Path:
    """The last mix of a finished run.

    Raises:
        InputError: no such run, one that is not finished, or a mix that is not its own.
    """
    if not (run_dir / "round_0").is_dir():
        raise InputError(
            f"--run_dir {run_dir} is no run of `datacomp-flyt self_filter`: give its --out"
        )
    try:
        with open_local(str(run_dir / NOTE)) as file:
            note = json.loads(file.read())
        wanted = note["mix"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"--run_dir {run_dir} is not finished: give the same `datacomp-flyt self_filter` again"
        ) from None
    path = run_dir / MIX
    if not path.is_file() or file_digest(path) != wanted:
        raise InputError(
            f"{path} is not the mix that the run ended with: remove {run_dir / 'done'}"
            f"/finished_{note.get('rounds')}.json and give the same command again"
        )
    return path


def main() -> None:
    """The command above."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    finish(args.run_dir, args.rounds)
