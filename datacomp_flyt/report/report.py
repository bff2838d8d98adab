"""Writes the report: reads the inputs, samples the pool, and renders the page."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.arguments import check_list
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.mixing import load_mixing_model
from datacomp_flyt.pool.available import read_available
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.parquet import ParquetShard, open_shards
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
    name_subsets,
    read_selections,
)
from datacomp_flyt.streams import say
from datacomp_flyt.tars.download_keys import DownloadKeys
from datacomp_flyt.threads import check_num_workers

if TYPE_CHECKING:
    from datacomp_flyt.report.examples import Candidates

PAGE = "index.html"
PENALTIES = (0.1, 0.15, 0.3, 0.6)
"""The range of FLYT's Figure 3."""


def write_report(
    out: str | Path,
    *,
    metadata_dir: str,
    subsets: Mapping[str, str | Path] | Sequence[str | Path],
    scores_dir: str | None = None,
    shards_dir: str | None = None,
    available: str | None = None,
    score_columns: Sequence[str] | None = None,
    scoring_model: str | None = None,
    score: str | None = None,
    repetition_penalties: Sequence[float] = PENALTIES,
    max_rows: int = 200_000,
    max_tars: int = 8,
    examples: int = 8,
    seed: int = 0,
    num_workers: int | None = None,
    command: str | None = None,
) -> Path:
    """Write one HTML page on what was selected from a pool, and why (docs/report.md).

    Args:
        out: the folder in which index.html is written.
        metadata_dir: the pool, a local or cloud folder of parquet files.
        subsets: the selections to compare, 1 to 7 .npy files: by name, or a sequence of `NAME=FILE`
            or `FILE`, which is called by its stem.
        scores_dir: a local or cloud folder of score tables.
        shards_dir: the pool's tars, for pictures.
        available: a list of the images at hand, as `datacomp-flyt available` writes it.
        score_columns: the scores to show; None for all of `scores_dir` and CLIP scores of the pool.
        scoring_model: the mixing model, `paper` or a file.
        score: the column that orders examples; None for the mixed score, or else the first column.
        repetition_penalties: alphas of Soft Cap Sampling to show draws against score for.
        max_rows: about how many examples of the pool to read scores and captions of.
        max_tars: the number of tars from which the examples with pictures are chosen.
        examples: the number of pictures in each group.
        seed: the seed of the sample.
        num_workers: threads; by default as many as there are cores.
        command: the text on the page that says how it was made; by default this call.

    Returns:
        the path of the page.

    Raises:
        InputError: an input is wrong. No page is written then, and an older one stays.
    """
    arguments = {**locals(), "out": str(out)}
    num_workers = _check_arguments(arguments)
    path = check_save_path(f"{out}/{PAGE}", "--out")
    arguments["subsets"] = named = name_subsets(subsets)
    _check_output(path, arguments)
    page = _make_page(
        named, metadata_dir=metadata_dir, scores_dir=scores_dir, shards_dir=shards_dir,
        available=available, score_columns=score_columns, scoring_model=scoring_model, score=score,
        repetition_penalties=repetition_penalties, max_rows=max_rows, max_tars=max_tars,
        examples=examples, seed=seed, num_workers=num_workers, command=command or _call(arguments),
    )  # fmt: skip
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _make_page(
    subsets: Mapping[str, str],
    *,
    metadata_dir: str,
    scores_dir: str | None,
    shards_dir: str | None,
    available: str | None,
    score_columns: Sequence[str] | None,
    scoring_model: str | None,
    score: str | None,
    repetition_penalties: Sequence[float],
    max_rows: int,
    max_tars: int,
    examples: int,
    seed: int,
    num_workers: int,
    command: str,
) -> str:
    """Read the inputs and render the page; see `write_report`."""
    model = load_mixing_model(scoring_model) if scoring_model else None
    shards = open_shards(metadata_dir, "--metadata_dir", num_workers)
    keys = DownloadKeys(shards_dir, num_workers) if shards_dir else None
    tables: list[ParquetShard] = []
    if scores_dir:
        tables = open_shards(scores_dir, "--scores_dir", num_workers, recursive=True, keys=keys)
    names = list(score_columns or default_columns(shards, tables))
    selections = read_selections(subsets, num_workers)
    images = read_available(available) if available else None
    tars = _list_tars(shards_dir) if shards_dir else None
    candidates = _candidates(tars, max_tars, seed, num_workers, shards_dir) if tars else None
    with_image = draws_with_image(selections, images, tars, num_workers)
    for selection, count in zip(selections, with_image or (), strict=False):
        say(f"{selection.name}: {count:,} of {selection.draws:,} draws have an image")
    also = candidates.uids if candidates else None
    sample = read_sample(shards, max_rows, seed, num_workers, also)
    for selection in selections:
        check_in_pool(selection, sample)
    folders = {"metadata_dir": metadata_dir, "scores_dir": scores_dir}
    scores, ranking = read_scores(
        sample, names, model, score, **folders, num_workers=num_workers, keys=keys
    )
    page = _sections(sample, selections, scores, ranking, with_image, repetition_penalties, seed)
    if candidates is not None:
        page["examples"] = _examples(candidates, sample, ranking, selections, examples, num_workers)
    if images is not None:
        images.check_unchanged()
    files = [*subsets.values(), *filter(None, (scoring_model, available))]
    page |= {"command": command, "seed": seed, "versions": versions()}
    page["inputs"] = _hashes(shards, tables, files, num_workers)
    return render(page)


def _check_arguments(arguments: Mapping[str, Any]) -> int:
    """Check the numbers among the arguments of `write_report`; return that of threads."""
    for name in ("max_rows", "max_tars", "examples"):
        if arguments[name] < 1:
            raise InputError(f"--{name} is {arguments[name]}, wanted 1 or more")
    if arguments["score_columns"] is not None:
        check_list(arguments["score_columns"], "--score_columns")
    penalties = arguments["repetition_penalties"]
    if len(penalties) > sections.MOST_PENALTIES or not all(0 <= p < np.inf for p in penalties):
        raise InputError(
            f"--repetition_penalties {' '.join(f'{p:g}' for p in penalties)}: wanted at most "
            f"{sections.MOST_PENALTIES} numbers, each 0 or more"
        )
    return check_num_workers(arguments["num_workers"])


def _check_output(path: Path, arguments: Mapping[str, Any]) -> None:
    """Raise InputError if the page would replace an input."""
    flags = {**arguments, "subsets": None, "subset": list(arguments["subsets"].values())}
    check_outputs([Output("--out", path.parent, (PAGE,))], flags)


def _hashes(
    shards: Sequence[ParquetShard],
    tables: Sequence[ParquetShard],
    files: Sequence[str],
    num_workers: int,
) -> dict[str, Any]:
    """Hash the metadata, the score tables and the other input files."""
    return {
        "metadata": hash_folder(shards, num_workers),
        "scores": hash_folder(tables, num_workers),
        "files": [hash_file(file) for file in files if file != "paper"],
    }


def _call(arguments: Mapping[str, Any]) -> str:
    """Write the call of `write_report` as Python, without the arguments that have their default."""
    parameters = inspect.signature(write_report).parameters
    given = [
        repr(value) if parameter.kind is not parameter.KEYWORD_ONLY else f"{name}={value!r}"
        for name, parameter in parameters.items()
        if (value := arguments[name]) != parameter.default
    ]
    return f"datacomp_flyt.write_report({', '.join(given)})"


def _list_tars(shards_dir: str) -> list[str]:
    # imported only if there are tars to read: webdataset imports torch where that is installed
    with needs_extra("report"):
        from datacomp_flyt.tars.shards import list_shards
    return list_shards(shards_dir, "--shards_dir")


def _candidates(
    tars: Sequence[str], max_tars: int, seed: int, num_workers: int, shards_dir: str | None
) -> Candidates:
    """Find the examples that can be shown as pictures."""
    with needs_extra("report"):
        from datacomp_flyt.report.examples import find_candidates
    return find_candidates(tars, max_tars, seed, num_workers, f"--shards_dir {shards_dir}")


def _sections(
    sample: PoolSample,
    selections: Sequence[Selection],
    scores: Mapping[str, NDArray[np.floating]],
    ranking: Ranking,
    with_image: Sequence[int] | None,
    repetition_penalties: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    """Make the sections of the page, without pictures."""
    chosen = sample.chosen
    uids = sample.pool.uids_of(np.flatnonzero(chosen))
    counts = [selection.counts_of(uids) for selection in selections]
    ranked = ranking.values[chosen]
    columns = {name: values[chosen] for name, values in scores.items()}
    per_example = selections[0].draws / sample.rule.pool_size
    captions = None if sample.captions is None else sample.captions[chosen].tolist()
    return {
        "summary": sections.summary(sample, selections, with_image),
        "distributions": sections.distributions(columns, ranked, ranking, counts),
        "repetitions": sections.repetitions(selections),
        "mixing": sections.mixing(ranking, chosen, counts),
        "correlation": sections.correlation(columns, ranked, ranking),
        "penalties": sections.penalties(
            *(uids, ranked, ranking.name, counts, per_example), *(repetition_penalties, seed)
        ),
        "overlap": sections.overlap_tables(selections),
        "examples": None,
        "words": sections.words(captions, counts, selections) if captions is not None else None,
    }


def _examples(
    candidates: Candidates,
    sample: PoolSample,
    ranking: Ranking,
    selections: Sequence[Selection],
    num_examples: int,
    num_workers: int,
) -> sections.Section:
    """Make the section of pictures."""
    from datacomp_flyt.report.examples import examples_section

    rows = find_uids(sample.pool.high, sample.pool.low, candidates.uids)
    return examples_section(candidates, rows, ranking, selections, num_examples, num_workers)
