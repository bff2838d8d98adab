"""Make a score column over a pool; `--scorer NAME --help` lists the flags of that scorer."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence

from datacomp_flyt.engines.flags import add_engine_arguments, report_failures
from datacomp_flyt.scorers.base.registry import (
    list_scorers,
    option_names,
    scorer_class,
    scorer_factory,
)
from datacomp_flyt.scorers.base.score import score
from datacomp_flyt.scorers.base.scorer import COMMON_FLAGS

_SHARED = (
    *COMMON_FLAGS, "manifest", "engine", "ray_address", "num_workers", "device", "retries"
)  # fmt: skip
"""Arguments of `score` itself; all others are the scorer's options."""


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    scorers = list_scorers()
    texts = "; ".join(f"{name}: {entry.help}" for name, entry in scorers.items())
    parser.add_argument(
        "--scorer", required=True, choices=list(scorers), metavar="NAME", help=f"which ({texts})"
    )
    parser.add_argument(
        "--metadata_dir",
        help="the pool, for scorers of metadata and npz: a folder of parquet, local or cloud",
    )
    parser.add_argument(
        "--shards_dir",
        help="the pool's tars, for scorers of images: a folder, or a pattern with braces",
    )
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="file made by `datacomp-flyt manifest`: refuse a pool with files that are missing, "
        "additional or of another size than it lists (hashes: `datacomp-flyt manifest --check`)",
    )
    parser.add_argument(
        "--scores_dir",
        required=True,
        help="local folder for score tables; gets one folder a column, and may hold other columns",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="name of the score column (default: the published name; only for scorers with one "
        "column)",
    )
    add_engine_arguments(parser)
    scorer = _value_of("--scorer", argv)
    if scorer in scorers:
        chosen = scorer_class(scorer)
        parser.epilog = f"{scorer}: {(inspect.getdoc(chosen) or '').partition(chr(10))[0]}"
        chosen.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Score; the exit code tells whether shards failed, see `report_failures`."""
    flags = vars(args)
    names = [name for name in option_names(scorer_factory(args.scorer)) if name not in _SHARED]
    options = {name: flags[name] for name in names if name in flags}
    report = score(args.scorer, **{name: flags[name] for name in _SHARED}, **options)
    others = "the others are done"
    if report.needs_all:
        others = "nothing is scored before the whole pool is known (what the others gave is kept)"
    return report_failures(report.failed, f"--scorer {args.scorer}", others)


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Return the word after a flag, before the command line is parsed."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word.startswith(flag):
            return word.partition("=")[2] or following
    return None
