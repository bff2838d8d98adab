"""The quick tour: select from the embedded pool with several methods, check, and look."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from datacomp_flyt.demo import POOL
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.subset import check_subset_file, read_subset
from datacomp_flyt.pool.uids import decode_uids
from datacomp_flyt.selection.select import select
from datacomp_flyt.streams import say

_CLIP_SCORES = ("clip_b32_similarity_score", "clip_l14_similarity_score")
_SCS = {"num_samples": 420, "repetition_penalty": 0.15, "seed": 0}

STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "The 30% with the highest CLIP score, as DataComp's own baseline": (
        "top_fraction",
        {"column": "clip_l14_similarity_score", "fraction": 0.3},
    ),
    "Soft Cap Sampling of both CLIP scores, standardised and added up": (
        "standardized_sum",
        {"score_columns": _CLIP_SCORES, "sampling": "scs", **_SCS},
    ),
    "The same with a hard cap of 5 instead": (
        "standardized_sum",
        {
            "score_columns": _CLIP_SCORES,
            "sampling": "hcs",
            "frequency_limit": 5,
            "num_samples": 420,
        },
    ),
    "The paper's mixing weights, for the two of its twelve scores that a bare pool has": (
        "m_flyt",
        {"scoring_model": "paper", "allow_missing_scores": True, "sampling": "scs", **_SCS},
    ),
}
"""The method of each step by title, with its options."""


def run_selection_tour(work_dir: Path) -> tuple[list[Path], list[str]]:
    """Run all steps, each printed as a user would type it; subsets go to `work_dir`.

    Returns:
        the subset files, and their problems.
    """
    metadata_dir = str(POOL / "metadata")
    say(f"the pool: {metadata_dir}", "420 pairs of an emoji's drawing and its name, in 4 shards")
    pool_uids = read_pool(metadata_dir, num_workers=1, progress=False).uids
    subsets: list[Path] = []
    problems: list[str] = []
    for step, (title, (method, options)) in enumerate(STEPS.items(), 1):
        save_path = work_dir / f"subset_{step}.npy"
        paths: dict[str, Any] = {"metadata_dir": metadata_dir, "save_path": str(save_path)}
        say("", f"=== {step}. {title}", f"$ {_command(method, {**options, **paths})}")
        select(method, **options, **paths)
        subsets.append(save_path)
        report = check_subset_file(save_path, pool_uids=pool_uids)
        problems += report.problems
        say("  not valid: " + "; ".join(report.problems) if report.problems else "  valid")
        _show(save_path)
    say(
        "",
        f"The subsets are in {work_dir}. DataComp's resharder takes them as they are:",
        f"$ mkdir out && python resharder.py -i {POOL / 'shards'} -o out -s {save_path}",
    )
    return subsets, problems


def _command(method: str, options: Mapping[str, Any]) -> str:
    """Return the command that does the same as `select` with these options."""
    words = ["python", "-m", "baselines_plugin", "--name", method]
    for name, value in options.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def _show(save_path: Path) -> None:
    """Print the captions drawn most often, and the lowest CLIP scores among those never drawn."""
    captions: dict[bytes, tuple[float, str]] = {}
    for path in sorted((POOL / "metadata").glob("*.parquet")):
        table = pq.read_table(path, columns=["uid", "text", _CLIP_SCORES[1]])
        rows = zip(table[_CLIP_SCORES[1]].to_pylist(), table["text"].to_pylist(), strict=True)
        uids = decode_uids(table["uid"])
        captions |= {uid.tobytes(): row for uid, row in zip(uids, rows, strict=True)}
    drawn, times = read_subset(save_path)
    order = np.argsort(-times, kind="stable")[:6]
    often = [f"{captions[drawn[i].tobytes()][1]} x{times[i]}" for i in order]
    never = sorted(captions[uid] for uid in set(captions) - {uid.tobytes() for uid in drawn})
    say(f"  chosen most:  {', '.join(often)}")
    say(f"  never chosen, lowest score first: {', '.join(text for _, text in never[:6])}")
