"""Statistics over seeds: mean, standard error, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datacomp_flyt.demo.evaluate import METRICS

Figures = Mapping[str, Mapping[str, float]]
"""Values of METRICS, by name of the training."""


def mean_and_error(values: Sequence[float]) -> dict[str, Any]:
    """Compute the mean and its standard error (None for a single seed)."""
    array = np.array(values, np.float64)
    error = float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else None
    return {"mean": float(array.mean()), "standard_error": error, "by_seed": array.tolist()}


def compare(runs: Sequence[Figures], ours: str) -> dict[str, Any]:
    """Compute mean and error of each metric, and of its difference from `ours`, by name."""
    comparison: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        runs_with_name = [run for run in runs if name in run]
        comparison[name] = {"seeds": len(runs_with_name)}
        for metric in METRICS:
            values = [run[name][metric] for run in runs_with_name]
            differences = [
                run[ours][metric] - value for run, value in zip(runs_with_name, values, strict=True)
            ]
            comparison[name][metric] = mean_and_error(values)
            comparison[name][f"{metric}_below_ours"] = mean_and_error(differences)
    return comparison


def table(comparison: Mapping[str, Any]) -> str:
    """Format the result of `compare` as a Markdown table."""
    lines = [
        "| trained on | seeds | accuracy | less than ours | retrieval | less than ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in comparison.items():
        cells = [
            cell(figures[key]) for metric in METRICS for key in (metric, f"{metric}_below_ours")
        ]
        lines.append(" | ".join([f"| {name}", str(figures["seeds"]), *cells]) + " |")
    return "\n".join(lines)


def cell(figure: Mapping[str, Any]) -> str:
    """Format a mean with its standard error."""
    error = figure["standard_error"]
    return f"{figure['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")
