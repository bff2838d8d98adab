"""Make a score column over a pool; `--scorer NAME --help` lists the flags of that scorer."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datacomp_flyt.engines.flags import add_engine_arguments, make_engine, report_failures
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.files.settings_file import SETTINGS_FILE
from datacomp_flyt.pool.embeddings import NOT_UNIT_NORM
from datacomp_flyt.pool.manifest import check_against
from datacomp_flyt.pool.outputs import Output, check_outputs, watch_inputs
from datacomp_flyt.pool.parquet import check_shards, open_shards
from datacomp_flyt.scorers.base.embedding_blocks import check_widths
from datacomp_flyt.scorers.base.registry import SCORERS, scorer_class
from datacomp_flyt.scorers.base.score_pool import Report, score_pool
from datacomp_flyt.scorers.base.scorer import MetadataScorer, Scorer
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shard_names import absolute_path, shard_name, shards_by_name
from datacomp_flyt.threads import default_num_workers


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    texts = "; ".join(f"{name}: {text}" for name, (_, text) in SCORERS.items())
    parser.add_argument(
        "--scorer", required=True, choices=list(SCORERS), metavar="NAME", help=f"which ({texts})"
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
        help="of `datacomp-flyt manifest`: refuse a pool with files that are missing, additional "
        "or of another size than it says (hashes: `datacomp-flyt manifest --check`)",
    )
    parser.add_argument(
        "--scores_dir",
        required=True,
        help="local folder for score tables; gets one folder a column, and may hold other columns",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="of the scores (default: as published, where it is one)"
    )
    add_engine_arguments(parser)
    asked = _asked(argv)
    if asked in SCORERS:
        scorer_class(asked).add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.column is not None:
        _check_column(args.column)
    unchanged = watch_inputs(vars(args))
    scorer = scorer_class(args.scorer).from_args(args)
    column = f"{args.scores_dir}/{scorer.columns[0]}"
    scores_dir = check_save_path(f"{column}/{SETTINGS_FILE}", "--scores_dir").parents[1]
    written = Output("--scores_dir", Path(column), ("*.parquet", SETTINGS_FILE), whole=True)
    check_outputs([written], vars(args))
    pool = _tars(args) if scorer.reads_images else _metadata(args)
    source = absolute_path(args.shards_dir if scorer.reads_images else args.metadata_dir)
    if isinstance(scorer, MetadataScorer) and scorer.arrays:
        check_widths(list(pool.shards.values()), scorer.arrays, default_num_workers())

    def check(name: str) -> None:
        pool.check(name)
        unchanged()

    with lock_outputs(column), make_engine(args, scorer.uses_gpu) as engine:
        report = score_pool(
            scorer, args.scorer, pool.shards, scores_dir, engine, args.retries, pool.num_rows,
            source, check,
        )  # fmt: skip
    _print(report, scorer, scores_dir)
    others = "nothing is scored before the whole pool is known (what the others gave is kept)"
    return report_failures(
        report.failed,
        f"--scorer {args.scorer}",
        *([others] if report.wants_all else []),
    )


def _check_column(name: str) -> None:
    """Raise InputError unless a column's name can name its folder, which readers do not pass over.

    A name such as `..` would put the scores outside of --scores_dir.
    """
    if name in ("", "uid") or name.startswith((".", "_")) or re.search("[/\\0]", name):
        raise InputError(
            f"--column {name!r} is no name of a score: it names a folder, too, so give a name "
            "other than uid, without / and not beginning with . or _"
        )


def _asked(argv: Sequence[str]) -> str | None:
    """The word after --scorer."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag.startswith("--scorer"):
            return flag.partition("=")[2] or value
    return None


class _Pool(NamedTuple):
    """Shards by name, their rows where these are known, and what tells of a changed one."""

    shards: dict[str, Any]
    num_rows: dict[str, int] | None
    check: Callable[[str], None]


def _metadata(args: argparse.Namespace) -> _Pool:
    if args.metadata_dir is None:
        raise InputError(f"--scorer {args.scorer} wants --metadata_dir: the pool's parquet and npz")
    if args.manifest is not None:
        check_against(args.manifest, args.metadata_dir, "--metadata_dir")
    shards = open_shards(args.metadata_dir, "--metadata_dir", default_num_workers())
    shards_by_name([shard.path for shard in shards], "--metadata_dir")
    named = {shard_name(shard.path): shard for shard in shards}
    num_rows = {name: shard.num_rows for name, shard in named.items()}
    return _Pool(named, num_rows, lambda name: check_shards([named[name]]))


def _tars(args: argparse.Namespace) -> _Pool:
    from datacomp_flyt.tars.shards import list_shards, watch_tars

    if args.shards_dir is None:
        raise InputError(f"--scorer {args.scorer} wants --shards_dir: it looks at images, in tars")
    if args.manifest is not None:
        check_against(args.manifest, args.shards_dir, "--shards_dir")
    named = shards_by_name(list_shards(args.shards_dir, "--shards_dir"), "--shards_dir")
    return _Pool(named, None, watch_tars(named))


def _print(report: Report, scorer: Scorer, scores_dir: Path) -> None:
    done = f"{report.num_scored:,} shards scored"
    if report.num_found:
        done += f", {report.num_found:,} were there"
    say(f"{scores_dir / scorer.columns[0]}: {', '.join(scorer.columns)}: {done}")
    for reason, number in sorted(report.counts.items()):
        if number:
            way_out = reason == NOT_UNIT_NORM and scorer.settings.get("renormalize") is False
            hint = ", used as it is: --renormalize brings it to 1" if way_out else ""
            say(f"  {number:,} examples: {reason}{hint}")
    if report.num_without_score:
        say(
            f"  {report.num_without_score:,} of {report.num_examples:,} examples have no score "
            "(NaN): selection refuses them, or leaves them out with --drop_nonfinite"
        )
