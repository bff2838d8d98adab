"""Write one HTML page on what was selected and why: scores, repetitions, pictures, words."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from datacomp_flyt.installation import needs_extra
from datacomp_flyt.streams import say


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    add = parser.add_argument
    add("--metadata_dir", required=True, help="the pool: a folder of parquet, local or cloud")
    add("--scores_dir", help="folder (local or cloud) of score tables: parquet with a uid column")
    add(
        "--subset",
        required=True,
        nargs="+",
        metavar="[NAME=]FILE",
        help="selections to compare, .npy files; a file without a name is called by its stem",
    )
    add(
        "--shards_dir",
        metavar="TARS",
        help="the pool's tars, for pictures: a folder, a pattern with braces, or what webdataset "
        "opens; a parquet of img2dataset beside a tar saves looking for uids in it",
    )
    add(
        "--available",
        metavar="FILE",
        help="list of the images at hand (`datacomp-flyt available`), to say how many draws have "
        "one; not needed if a parquet of img2dataset lies beside every tar",
    )
    add(
        "--score_columns",
        nargs="+",
        metavar="COLUMN",
        help="scores to show (default: all of --scores_dir, and the metadata's CLIP scores)",
    )
    add(
        "--scoring_model",
        help="the mixing model: 'paper', a .safetensors file of ours, or the published mflyt.pt",
    )
    add(
        "--score",
        metavar="COLUMN",
        help="the score that orders examples (default: the mixed score of --scoring_model, else "
        "the first column)",
    )
    add(
        "--repetition_penalties",
        nargs="+",
        type=float,
        metavar="ALPHA",
        help="alphas of the counts against score (default: 0.1 0.15 0.3 0.6)",
    )
    add(
        "--max_rows",
        type=int,
        help="about how many of the pool's examples to read scores and captions of "
        "(default: 200000)",
    )
    add("--max_tars", type=int, help="tars to choose shown examples from (default: 8)")
    add("--examples", type=int, help="pictures in each group (default: 8)")
    add("--seed", type=int, help="seed of the sample (default: 0)")
    add("--num_workers", type=int, help="threads (default: all cores)")
    add("--out", required=True, metavar="FOLDER", help="write index.html here")
    parser.set_defaults(argv=list(argv))


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    with needs_extra("report"):
        from datacomp_flyt.report.report import write_report
    given = {name: value for name, value in vars(args).items() if value is not None}
    del given["command"]
    path = write_report(
        given.pop("out"),
        subsets=given.pop("subset"),
        command=shlex.join(["datacomp-flyt", *given.pop("argv")]),
        **given,
    )
    say(f"saved {path}")
    return 0
