"""The tour: from a noisy pool to CLIP models trained on selections, and the best of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from datacomp_flyt.demo.evaluate import METRICS
from datacomp_flyt.demo.experiment import CLIP_SCORE, UNFILTERED, Experiment, mixed, single
from datacomp_flyt.demo.noisy_pool import NOISE
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uids import decode_uids
from datacomp_flyt.steps import Step, run_steps
from datacomp_flyt.streams import say

TITLES = {
    UNFILTERED: "all of the pool",
    "clip_score": "CLIP score, top 30%",
    "m_flyt_scs": "M-FLYT + Soft Cap Sampling",
}


def steps_of(experiment: Experiment) -> list[Step]:
    """Return the steps of the tour over one pool."""
    clip_score, ours = list(TITLES)[1:]
    return [
        *experiment.pool(),
        *experiment.scores(),
        experiment.m_flyt("m_flyt", "M-FLYT learns how to mix the score columns"),
        experiment.select(clip_score, "The 30% with the highest CLIP score", *single(CLIP_SCORE)),
        experiment.select(
            ours, "Soft Cap Sampling of M-FLYT's mix", *mixed(), *experiment.soft_cap()
        ),
        experiment.train(UNFILTERED, "CLIP from scratch on the whole pool, on as many samples", ()),
        experiment.train(clip_score, "CLIP from scratch on the top 30%"),
        experiment.train(ours, "CLIP from scratch on what M-FLYT and Soft Cap Sampling chose"),
        experiment.evaluate(list(TITLES)),
        experiment.report([clip_score, ours], "m_flyt/scoring_model.safetensors"),
    ]


def run_tour(
    work_dir: Path, experiments: Sequence[Experiment]
) -> list[dict[str, dict[str, float]]]:
    """Run the tour for each experiment in a folder of its own, and print the results.

    Returns:
        for each experiment the figures of each selection: `pairs`, `spoiled` and METRICS.

    Raises:
        InputError: a step failed.
    """
    # One thread beside one loader process: with more, two cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results, seconds = [], 0.0
    for experiment in experiments:
        folder = folder_of(work_dir, experiment)
        say("", f"in {folder}:")
        seconds += sum(run_steps(steps_of(experiment), folder, made=("**",)).values())
        figures = json.loads((folder / "results.json").read_text())
        results.append({name: figures[name] | contents_of(folder, name) for name in TITLES})
    say("", *results_table(results).split("\n"), "")
    say(f"What was selected, as a page: {page_of(work_dir, experiments[0])}")
    say(f"Work done here: {seconds:.0f} s. A second run only shows this again.")
    return results


def folder_of(work_dir: Path, experiment: Experiment) -> Path:
    """Return the folder of an experiment's files."""
    return work_dir / f"noise_{experiment.noise}" / f"seed_{experiment.seed}"


def page_of(work_dir: Path, experiment: Experiment) -> Path:
    """Return the path of an experiment's HTML page."""
    return folder_of(work_dir, experiment) / "report" / "index.html"


def subsets_of(work_dir: Path, experiment: Experiment) -> list[Path]:
    """Return the paths of the subsets that the tour selects."""
    folder = folder_of(work_dir, experiment) / "subsets"
    return [folder / f"{name}.npy" for name in TITLES if name != UNFILTERED]


def contents_of(folder: Path, name: str) -> dict[str, float]:
    """Return the number of pairs of a selection, and the spoiled share of its draws."""
    table = pq.read_table(folder / "kinds.parquet")
    uids, kinds = decode_uids(table["uid"]), np.array(table["kind"].to_pylist())
    counts = np.ones(len(uids), np.int64)
    if name != UNFILTERED:
        drawn, repeats = read_subset(folder / "subsets" / f"{name}.npy")
        counts = np.zeros(len(uids), np.int64)
        order = np.argsort(uids)
        counts[order[np.searchsorted(uids[order], drawn)]] = repeats
    spoiled = np.isin(kinds, list(NOISE))
    return {
        "pairs": float(np.count_nonzero(counts)),
        "spoiled": float(counts[spoiled].sum() / counts.sum()),
    }


def results_table(results: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Format the mean over seeds of each figure, with standard errors if there are several."""
    formats = {"pairs": "{:,.0f}", "spoiled": "{:.0%}", **dict.fromkeys(METRICS, "{:.1%}")}
    rows = [("trained on", *formats)]
    for name, title in TITLES.items():
        cells = []
        for column, form in formats.items():
            values = np.array([result[name][column] for result in results])
            cells.append(form.format(values.mean()))
            if column in METRICS and len(values) > 1:
                error = values.std(ddof=1) / len(values) ** 0.5
                cells[-1] += f" ± {form.format(error)}"
        rows.append((title, *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]) for row in rows
    ]
    best = max(TITLES, key=lambda name: sum(result[name]["accuracy"] for result in results))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", f"Best: {TITLES[best]}."])
