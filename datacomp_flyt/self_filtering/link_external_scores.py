"""Link external score tables into a round's folder of scores.

python -m datacomp_flyt.self_filtering.link_external_scores --scores_dir scores --out round_0/scores
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.link_external_scores")

import os
import shutil
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.streams import say


def link_external_scores(scores_dir: Path, out: Path) -> int:
    """Link each parquet file of a folder as `OUT/external/...`; copy it where links fail.

    Returns:
        the number of files.

    Raises:
        InputError: `scores_dir` is no local folder, or holds no parquet file.
    """
    if not scores_dir.is_dir():
        raise InputError(f"--scores_dir {scores_dir} is no local folder: copy it first")
    endings = (".parquet",)
    listing = list_folder(str(scores_dir), "--scores_dir", endings, recursive=True, needed=endings)
    shutil.rmtree(out / "external", ignore_errors=True)  # of a run that was interrupted
    for table in listing.versions:
        link = out / "external" / listing.name(table)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(os.path.realpath(table), link)
        except OSError:
            shutil.copyfile(table, link)
    return len(listing.versions)


def main() -> None:
    """Parse the flags, call `link_external_scores` and print the number of tables."""
    parser = Parser(description=__doc__)
    parser.add_argument("--scores_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    say(f"{link_external_scores(args.scores_dir, args.out):,} tables")
