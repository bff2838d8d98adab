"""Figures of several seeds: mean, standard error, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datacomp_flyt.demo.evaluate import METRICS

Figures = Mapping[str, Mapping[str, float]]
"""By name of what was trained, each of METRICS."""


def mean_and_error(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its standard error (None of a single seed), and what it is of."""
    array = np.array(values, np.float64)
    error = float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else None
    return {"mean": float(array.mean()), "standard_error": error, "by_seed": array.tolist()}


def compare(runs: Sequence[Figures], ours: str) -> dict[str, Any]:
    """Of each name, mean and error of each metric, and of what `ours` has more in the same seed."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        both = [run for run in runs if name in run]
        found[name] = {"seeds": len(both)}
        for metric in METRICS:
            values = [run[name][metric] for run in both]
            less = [run[ours][metric] - value for run, value in zip(both, values, strict=True)]
            found[name][metric] = mean_and_error(values)
            found[name][f"{metric}_below_ours"] = mean_and_error(less)
    return found


def table(found: Mapping[str, Any]) -> str:
    """What `compare` found, as the pages have it."""
    lines = [
        "| trained on | seeds | accuracy | less than ours | retrieval | less than ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, of in found.items():
        cells = [cell(of[key]) for metric in METRICS for key in (metric, f"{metric}_below_ours")]
        lines.append(" | ".join([f"| {name}", str(of["seeds"]), *cells]) + " |")
    return "\n".join(lines)


def cell(of: Mapping[str, Any]) -> str:
    """Mean and standard error."""
    error = of["standard_error"]
    return f"{of['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")
