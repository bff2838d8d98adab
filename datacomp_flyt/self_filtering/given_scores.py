"""Put score tables from elsewhere beside those that a round makes, as links.

python -m datacomp_flyt.self_filtering.given_scores --scores_dir scores --out round_0/scores
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.exits import running
from datacomp_flyt.streams import say


def link_tables(scores_dir: Path, out: Path) -> int:
    """Each parquet file of a folder as `OUT/given/...`; copies where there can be no links.

    A link to the folder would not do: those who look for tables do not follow it.

    Returns:
        how many there are.

    Raises:
        InputError: no local folder, or none in it.
    """
    if not scores_dir.is_dir():
        raise InputError(f"--scores_dir {scores_dir} is no local folder: copy it first")
    shutil.rmtree(out / "given", ignore_errors=True)  # of a run that was broken off
    tables = sorted(scores_dir.rglob("*.parquet"))
    for table in tables:
        place = out / "given" / table.relative_to(scores_dir)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(table.resolve(), place)
        except OSError:
            shutil.copyfile(table, place)
    if not tables:
        raise InputError(
            f"--scores_dir {scores_dir} holds no .parquet file: give the folder that does"
        )
    return len(tables)


def main() -> None:
    """The command above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scores_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with running("datacomp_flyt.self_filtering.given_scores"):
        say(f"{link_tables(args.scores_dir, args.out):,} tables")


if __name__ == "__main__":
    main()
