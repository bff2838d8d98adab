"""The whole job: inputs, sample, numbers, figures, page."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.mixing import load_mixing_model
from datacomp_flyt.pool.available import read_available
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.report import sections
from datacomp_flyt.report.page import render
from datacomp_flyt.report.provenance import hash_file, hash_folder, versions
from datacomp_flyt.report.sample import PoolSample, read_sample
from datacomp_flyt.report.scores import Ranking, default_columns, read_scores
from datacomp_flyt.report.selections import (
    Selection,
    check_in_pool,
    draws_with_image,
    read_selections,
)
from datacomp_flyt.streams import say
from datacomp_flyt.tars.download_keys import DownloadKeys

if TYPE_CHECKING:
    from datacomp_flyt.report.examples import Candidates

PAGE = "index.html"


def write_report(args: argparse.Namespace, argv: Sequence[str]) -> Path:
    """Write `--out`/index.html from the flags of `datacomp-flyt report`.

    Raises:
        InputError: something given is wrong; no page is written then, and an older one stays.
    """
    _check_flags(args)
    path = check_save_path(f"{args.out}/{PAGE}", "--out")
    check_outputs([Output("--out", path.parent, (PAGE,))], vars(args))
    model = load_mixing_model(args.scoring_model) if args.scoring_model else None
    shards = open_shards(args.metadata_dir, "--metadata_dir", args.num_workers)
    keys = DownloadKeys(args.shards_dir, args.num_workers) if args.shards_dir else None
    tables = (
        open_shards(args.scores_dir, "--scores_dir", args.num_workers, recursive=True, keys=keys)
        if args.scores_dir
        else []
    )
    names = args.score_columns or default_columns(shards, tables)
    selections = read_selections(args.subset, args.num_workers)
    available = read_available(args.available) if args.available else None
    tars = _tars(args) if args.shards_dir else None
    candidates = _candidates(args, tars) if tars else None
    with_image = draws_with_image(selections, available, tars, args.num_workers)
    for selection, number in zip(selections, with_image or (), strict=False):
        say(f"{selection.name}: {number:,} of {selection.draws:,} draws have an image")
    also = candidates.uids if candidates else None
    sample = read_sample(shards, args.max_rows, args.seed, args.num_workers, also)
    for selection in selections:
        check_in_pool(selection, sample)
    scores, ranking = read_scores(args, sample, names, model, keys)
    page = _page(args, argv, sample, selections, scores, ranking, candidates, with_image)
    page["inputs"] = {
        "metadata": hash_folder(shards, args.num_workers),
        "scores": hash_folder(tables, args.num_workers),
        "files": [hash_file(selection.path) for selection in selections],
    }
    if args.scoring_model and args.scoring_model != "paper":
        page["inputs"]["files"].append(hash_file(args.scoring_model))
    if available is not None:
        available.check_unchanged()
        page["inputs"]["files"].append(hash_file(args.available))
    content = render(page)
    with atomic_write(path) as file:
        file.write(content.encode())
    return path


def _tars(args: argparse.Namespace) -> list[str]:
    # imported where there are tars to read: webdataset brings torch where that is installed
    with needs_extra("report"):
        from datacomp_flyt.tars.shards import list_shards
    return list_shards(args.shards_dir, "--shards_dir")


def _candidates(args: argparse.Namespace, tars: list[str]) -> Candidates:
    """The examples that can be shown as pictures."""
    with needs_extra("report"):
        from datacomp_flyt.report.examples import find_candidates
    flag = f"--shards_dir {args.shards_dir}"
    return find_candidates(tars, args.max_tars, args.seed, args.num_workers, flag)


def _check_flags(args: argparse.Namespace) -> None:
    for flag in ("max_rows", "max_tars", "num_workers", "examples"):
        if getattr(args, flag) < 1:
            raise InputError(f"--{flag} is {getattr(args, flag)}, wanted 1 or more")
    penalties = args.repetition_penalties
    if len(penalties) > sections.MOST_PENALTIES or not all(0 <= p < np.inf for p in penalties):
        raise InputError(
            f"--repetition_penalties {' '.join(f'{p:g}' for p in penalties)}: wanted at most "
            f"{sections.MOST_PENALTIES} numbers, each 0 or more"
        )


def _page(
    args: argparse.Namespace,
    argv: Sequence[str],
    sample: PoolSample,
    selections: list[Selection],
    scores: dict[str, NDArray[np.floating]],
    ranking: Ranking,
    candidates: Candidates | None,
    with_image: list[int] | None,
) -> dict[str, Any]:
    """What the template shows, but for the inputs' hashes."""
    chosen = sample.chosen
    uids = sample.pool.uids_of(np.flatnonzero(chosen))
    counts = [selection.counts_of(uids) for selection in selections]
    ordered = ranking.values[chosen]
    inside = {name: values[chosen] for name, values in scores.items()}
    per_example = selections[0].draws / sample.rule.pool_size
    page: dict[str, Any] = {
        "command": shlex.join(["datacomp-flyt", *argv]),
        "seed": args.seed,
        "versions": versions(),
        "summary": sections.summary(sample, selections, with_image),
        "distributions": sections.distributions(inside, ordered, ranking, counts),
        "repetitions": sections.repetitions(selections),
        "mixing": sections.mixing(ranking, chosen, counts),
        "correlation": sections.correlation(inside, ordered, ranking),
        "penalties": sections.penalties(
            *(uids, ordered, ranking.name, counts, per_example),
            *(args.repetition_penalties, args.seed),
        ),
        "overlap": sections.overlap_tables(selections),
        "examples": None,
        "words": None,
    }
    if sample.captions is not None:
        page["words"] = sections.words(sample.captions[chosen].tolist(), counts, selections)
    if candidates is not None:
        from datacomp_flyt.report.examples import examples_section

        places = find_uids(sample.pool.high, sample.pool.low, candidates.uids)
        page["examples"] = examples_section(
            candidates, places, ranking, selections, args.examples, args.num_workers
        )
    return page
