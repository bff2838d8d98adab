"""Put score tables from elsewhere beside those that a round makes, as links.

python -m datacomp_flyt.self_filtering.given_scores --scores_dir scores --out round_0/scores
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.given_scores")

import os
import shutil
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.streams import say


def link_tables(scores_dir: Path, out: Path) -> int:
    """Each parquet file of a folder as `OUT/given/...`; copies where there can be no links.

    Returns:
        how many there are.

    Raises:
        InputError: no local folder, or none in it.
    """
    if not scores_dir.is_dir():
        raise InputError(f"--scores_dir {scores_dir} is no local folder: copy it first")
    endings = (".parquet",)
    found = list_folder(str(scores_dir), "--scores_dir", endings, recursive=True, needed=endings)
    shutil.rmtree(out / "given", ignore_errors=True)  # of a run that was broken off
    for table in found.versions:
        place = out / "given" / found.name(table)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(os.path.realpath(table), place)
        except OSError:
            shutil.copyfile(table, place)
    return len(found.versions)


def main() -> None:
    """The command above."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scores_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    say(f"{link_tables(args.scores_dir, args.out):,} tables")
