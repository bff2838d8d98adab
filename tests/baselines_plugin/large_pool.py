"""A pool of 2,000 examples, methods as flags, and an external sort in small slices."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.files import memmap_arrays
from datacomp_flyt.mixing import columns_in_files
from datacomp_flyt.pool import subset
from datacomp_flyt.pool.external_sort.sorted_files import sort_into_files
from datacomp_flyt.samplers import race, rounds, top_fraction
from datacomp_flyt.selection import methods, open_pool
from tests.baselines_plugin.job import Job, in_process
from tests.conftest import make_pool, take
from tests.engines.here import Here

EXAMPLES = 2_000
POOL = make_pool(EXAMPLES, seed=1)
OUTPUTS = ("subset.npy", "scores.parquet", "model.safetensors")
ON_FLYT = ("--column", "FLYT")
SCS = ("--name", "scs", *ON_FLYT, "--num_samples", 3000, "--repetition_penalty", 0.4)
ROUNDS = (*SCS, "--sampling_batch_size", 40)
TOP = ("--name", "top_fraction", *ON_FLYT, "--fraction", 0.3)
M_FLYT = ("--name", "m_flyt", "--scoring_model", "paper", *SCS[4:])
TWO_STAGE = ("--name", "neg_clip_loss_norm_sim", "--sampling", "top_fraction", "--fraction", 0.2)
GAPS = ("--allow_partial_scores", "--drop_nonfinite")


def gappy_scores() -> dict[str, object]:
    """Return scores of most of the pool, with ties and a few values that are not finite."""
    scores = dict(POOL.scores)
    scores["FLYT"] = np.round(scores["FLYT"], 1)
    scores["vas"] = np.arange(EXAMPLES) % 7
    for seed, name in enumerate(("FLYT", "negCLIPLoss", "normsim_inf")):
        scores[name] = scores[name].copy()
        rows = np.random.default_rng(seed).choice(EXAMPLES, 9, replace=False)
        scores[name][rows] = [np.nan, np.inf, -np.inf] * 3
    return take(scores, [row for row in range(EXAMPLES) if row % 31])


@contextlib.contextmanager
def small_slices(engine: Engine | None = None) -> Iterator[Here]:
    """Sort in slices of 150 rows, and use small blocks and uid ranges.

    Without an engine, the work runs in this process.
    """
    here = Here()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_pool, "choose_engine", lambda *_: engine or here)
        sort_small_slices = functools.partial(sort_into_files, rows_at_once=150)
        patch.setattr(columns_in_files, "sort_into_files", sort_small_slices)
        for module in (methods, memmap_arrays, subset, top_fraction):
            patch.setattr(module, "_BLOCK", 64)
        for module in (race, rounds):
            patch.setattr(module, "BLOCK", 100)
        for name, value in {"_SLAB": 400, "_RANGE_BITS": 8, "_LEAST_IN_BUCKET": 30}.items():
            patch.setattr(rounds, name, value)
        yield here


def outputs(job: Job, folder: Path, *flags: object) -> tuple[dict[str, bytes], str]:
    """Run a selection; return its saved files and its output without the paths of the files."""
    folder.mkdir(exist_ok=True)
    output_flags = ["--save_path", folder / OUTPUTS[0], "--save_scores", folder / OUTPUTS[1]]
    if flags[1] in ("m_flyt", "plain_sum", "sum", "standardized_sum", "in_weighted_sum", "hype"):
        output_flags += ["--save_scoring_model", folder / OUTPUTS[2]]
    words = [str(word) for word in (*job.flags(*flags), *output_flags)]
    code, stdout, errors = in_process(*words)
    assert (code, errors) == (0, "")
    saved = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return saved, re.sub(r"saved .*", "", stdout)
