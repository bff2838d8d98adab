"""Draw docs/selection.svg, the picture of README.md, from benchmarks/results/evidence.json.

    python -m tools.draw_readme_picture

The left half shows the steps from a pool to a subset with the sizes of the benchmark's experiment;
the right half shows the accuracy of CLIP models that were trained on different subsets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from datacomp_flyt.demo.experiment import COLUMNS, Experiment

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks/results/evidence.json"
PICTURE = REPOSITORY / "docs/selection.svg"
NOISE = 0.5
BARS = {
    "m_flyt_scs": "M-FLYT + Soft Cap Sampling",
    "sum_scs": "sum of the scores + Soft Cap Sampling",
    "clip_score_30": "CLIP score, top 30%",
    "normsim_30": "NormSim, top 30%",
    "random_30": "random 30%",
    "no_filter": "all of the pool",
}
"""Names of selections in the results, and their labels, from top to bottom."""
OURS, OTHERS, INK = "#1f6f8b", "#b8c4cc", "#222222"


def accuracies() -> dict[str, tuple[float, float]]:
    """Return mean and standard error of the accuracy in percent, by the selection's name."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())["noise"][str(NOISE)]
    means = {name: results[name]["accuracy"] for name in BARS}
    return {name: (100 * x["mean"], 100 * x["standard_error"]) for name, x in means.items()}


def stages() -> list[tuple[str, str]]:
    """Return the title and the size of each step from pool to subset."""
    experiment = Experiment(noise=NOISE, seed=0)
    return [
        ("pool", f"{experiment.pairs:,} image-text pairs,\n{NOISE:.0%} of them noise"),
        ("scores", f"{len(COLUMNS)} columns:\nCLIP, negCLIPLoss, NormSim, ..."),
        ("mix", "one score, with weights\nlearned by M-FLYT"),
        (
            "subset",
            f"{experiment.samples_seen:,} draws: the best pairs\nseveral times (Soft Cap Sampling)",
        ),
    ]


def draw_stages(axes: Axes) -> None:
    """Draw the steps from pool to subset as a funnel of boxes."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(-4, 0))
    for row, (title, text) in enumerate(stages()):
        left, middle = 0.01 + 0.022 * row, -row - 0.5
        color = OURS if row == len(stages()) - 1 else OTHERS
        box = Rectangle((left, middle - 0.38), 1 - 2 * left, 0.76, color=color, linewidth=0)
        axes.add_patch(box)
        ink = "white" if color == OURS else INK
        axes.text(0.15, middle, title, color=ink, weight="bold", va="center")
        axes.text(0.34, middle, text, color=ink, va="center", fontsize=8.5)


def draw_accuracies(axes: Axes) -> None:
    """Draw one horizontal bar for each selection, with its standard error."""
    values = accuracies()
    rows = range(len(BARS))
    axes.barh(
        rows,
        [values[name][0] for name in BARS],
        xerr=[values[name][1] for name in BARS],
        color=[OURS if name == "m_flyt_scs" else OTHERS for name in BARS],
        error_kw={"ecolor": INK, "elinewidth": 1},
        height=0.7,
    )
    axes.set_yticks(rows, BARS.values())
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("zero-shot accuracy of CLIP, %", fontsize=9.5, loc="left")
    for row, (mean, error) in enumerate(values.values()):
        axes.text(mean + error + 1.5, row, f"{mean:.1f} ± {error:.1f}", va="center")


def main() -> None:
    """Draw the picture."""
    settings: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "",
        "text.color": INK,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9.6, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 0.8))
        draw_stages(left)
        draw_accuracies(right)
        figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
