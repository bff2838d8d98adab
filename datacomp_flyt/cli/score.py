"""Make a score column over a pool; `--scorer NAME --help` lists the flags of that scorer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datacomp_flyt.cli.engine_flags import add_engine_arguments, make_engine, report_failures
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.shard_names import by_name, shard_name
from datacomp_flyt.pool.subset import check_save_path
from datacomp_flyt.scorers.job import Report, score_pool
from datacomp_flyt.scorers.registry import SCORERS, scorer_class
from datacomp_flyt.scorers.scorer import Scorer
from datacomp_flyt.scorers.settings_file import SETTINGS_FILE


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    texts = "; ".join(f"{name}: {text}" for name, (_, text) in SCORERS.items())
    parser.add_argument(
        "--scorer", required=True, choices=list(SCORERS), metavar="NAME", help=f"which ({texts})"
    )
    parser.add_argument(
        "--metadata_dir",
        help="the pool: parquet with or without npz, local or cloud; for scorers of images, to say "
        "how much of it was scored",
    )
    parser.add_argument(
        "--shards_dir",
        help="the pool's tars, for scorers of images: a folder, or a pattern with braces",
    )
    parser.add_argument(
        "--scores_dir",
        required=True,
        help="local folder for score tables; gets one folder a column, and may hold other columns",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="of the scores (default: as published, where it is one)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the factors of matrix products (default: fp32)",
    )
    parser.add_argument(
        "--renormalize", action="store_true", help="bring embeddings to length 1 first"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    add_engine_arguments(parser)
    asked, _ = _scorer_alone().parse_known_args(argv)
    if asked.scorer in SCORERS:
        scorer_class(asked.scorer).add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    scorer = scorer_class(args.scorer).from_args(args)
    column = f"{args.scores_dir}/{scorer.columns[0]}"
    scores_dir = check_save_path(f"{column}/{SETTINGS_FILE}", "--scores_dir").parents[1]
    shards, num_rows = _tars(args) if scorer.reads_images else _metadata(args)
    engine = make_engine(args)
    report = score_pool(scorer, args.scorer, shards, scores_dir, engine, args.retries, num_rows)
    _print(report, scorer, scores_dir)
    return report_failures(report.failed, f"--scorer {args.scorer}")


def _scorer_alone() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--scorer")
    return parser


def _metadata(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, int] | None]:
    if args.metadata_dir is None:
        raise InputError(f"--scorer {args.scorer} wants --metadata_dir: the pool's parquet and npz")
    shards = open_shards(args.metadata_dir, "--metadata_dir", args.num_workers or 1)
    named = {shard_name(shard.path): shard for shard in shards}
    return named, {name: shard.num_rows for name, shard in named.items()}


def _tars(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, int] | None]:
    from datacomp_flyt.pool.tar_shards import list_shards

    if args.shards_dir is None:
        raise InputError(f"--scorer {args.scorer} wants --shards_dir: it looks at images, in tars")
    return by_name(list_shards(args.shards_dir, "--shards_dir"), "--shards_dir"), None


def _print(report: Report, scorer: Scorer, scores_dir: Path) -> None:
    done = f"{report.num_scored:,} shards scored"
    if report.num_found:
        done += f", {report.num_found:,} were there"
    print(f"{scores_dir / scorer.columns[0]}: {', '.join(scorer.columns)}: {done}")
    for reason, number in sorted(report.counts.items()):
        if number:
            print(f"  {number:,} examples: {reason}")
    if report.num_without_score:
        print(
            f"  {report.num_without_score:,} of {report.num_examples:,} examples have no score "
            "(NaN): selection refuses them, or leaves them out with --drop_nonfinite"
        )
