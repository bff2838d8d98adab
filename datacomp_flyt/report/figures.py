"""Draws the figures as inline SVG. Text stays text, and bytes depend on the numbers alone.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. Each has a line
style and a hatch, so that a print without colour can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from datacomp_flyt.report.statistics import Contribution, Floats

POOL_COLOR = "#9a9a9a"
_WIDTH, _HEIGHT = 4.0, 2.3  # inches; the page scales a figure to its column
_LINE = 1.7


@dataclass(frozen=True)
class LineStyle:
    """The style of one selection or one alpha: colour, dashes in line widths, hatch."""

    color: str
    dashes: tuple[float, ...]
    hatch: str

    @property
    def light(self) -> str:
        """The colour mixed with two parts of white, since hatches have no transparency."""
        parts = (int(self.color[at : at + 2], 16) for at in (1, 3, 5))
        return "#" + "".join(f"{(part + 2 * 255) // 3:02x}" for part in parts)

    @property
    def dash_array(self) -> str:
        """The value of SVG's `stroke-dasharray` for the line width of the figures."""
        return " ".join(f"{_LINE * dash:g}" for dash in self.dashes) or "none"


STYLES = (
    LineStyle("#0072B2", (), "///"),
    LineStyle("#D55E00", (5, 2), "\\\\\\"),
    LineStyle("#009E73", (1, 1.5), "..."),
    LineStyle("#CC79A7", (6, 2, 1, 2), "xxx"),
    LineStyle("#000000", (3, 1.5), "---"),
    LineStyle("#E69F00", (8, 3), "+++"),
    LineStyle("#56B4E9", (4, 2, 1, 2, 1, 2), "ooo"),
)


def distribution(edges: Floats, pool: Floats, selections: Sequence[Floats], label: str) -> Markup:
    """Draw shares of the pool (filled) and of each selection's draws (lines) by score."""
    with _figure(label) as (figure, axes, svg):
        axes.stairs(100 * pool, edges, fill=True, color="#d9d9d9")
        axes.stairs(100 * pool, edges, color=POOL_COLOR, linewidth=1)
        for style, shares in zip(STYLES, selections, strict=False):
            axes.stairs(100 * shares, edges, **_line(style))
        axes.set_xlabel(label)
        axes.set_ylabel("% in a bin")
        axes.set_ylim(bottom=0)
        _save(figure, svg)
    return _inline(svg, f"Distribution of {label} over the pool and over each selection's draws")


def repetitions(edges: NDArray[np.int64], examples: Floats, style: LineStyle, name: str) -> Markup:
    """Draw the number of examples by their number of draws in a selection (FLYT, Figure 2)."""
    with _figure(name) as (figure, axes, svg):
        shown = examples > 0
        axes.bar(
            edges[:-1][shown] - 0.5,
            examples[shown],
            np.diff(edges)[shown],
            align="edge",
            facecolor=style.light,
            edgecolor=style.color,
            hatch=style.hatch,
            linewidth=0.8,
        )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0.5 * min(1.0, float(examples[shown].min())))
        if edges[-1] > 200:
            axes.set_xscale("log")
            axes.set_xlim(left=0.9)
            axes.xaxis.set_major_formatter(_plain)
        else:
            axes.set_xlim(0.4, max(edges[-1] - 0.4, 5.6))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("times drawn")
        axes.set_ylabel("examples")
        _save(figure, svg)
    return _inline(svg, f"How many examples {name} draws how often, on a logarithmic scale")


def counts_by_score(scores: Floats, lines: Sequence[Floats], label: str, caption: str) -> Markup:
    """Draw the mean number of draws of an example against its score, one line each."""
    with _figure(label) as (figure, axes, svg):
        for style, means in zip(STYLES, lines, strict=False):
            axes.plot(scores, means, **_line(style))
        axes.set_xlabel(label)
        axes.set_ylabel("draws per example")
        axes.set_ylim(bottom=0)
        _save(figure, svg)
    return _inline(svg, caption)


def by_round(lines: Sequence[Sequence[float]], caption: str) -> Markup:
    """Draw shares between 0 and 1 by round, one line each; NaN leaves a gap."""
    with _figure(caption) as (figure, axes, svg):
        for style, values in zip(STYLES, lines, strict=False):
            axes.plot(range(len(values)), values, marker="o", markersize=3.5, **_line(style))
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(min([0.0, *(v for line in lines for v in line if v == v)]), 1.02)
        _save(figure, svg)
    return _inline(svg, f"{caption}, by round")


def contributions(inputs: Sequence[Contribution]) -> Markup:
    """Draw each input's contribution to the mixed score: 5% to 95% of the pool, and its median."""
    height = 0.55 + 0.26 * len(inputs)
    with _figure("contributions", 4.6, height) as (figure, axes, svg):
        rows = np.arange(len(inputs))[::-1]
        for row, item in zip(rows, inputs, strict=True):
            style = STYLES[0] if item.weight >= 0 else STYLES[1]
            axes.plot([item.low, item.high], [row, row], **(_line(style) | {"linewidth": 3.5}))
            axes.plot([item.middle], [row], "o", color="white", markeredgecolor="black")
        axes.axvline(0, color="#555555", linewidth=0.8)
        axes.set_yticks(rows, [item.column for item in inputs])
        axes.set_ylim(-0.7, len(inputs) - 0.3)
        axes.set_xlabel("contribution to the mixed score")
        _save(figure, svg)
    return _inline(svg, "Range of each input's contribution to the mixed score, over the pool")


def _plain(value: float, _: float) -> str:
    """Write a tick of a logarithmic axis in digits, since mathematical text is switched off."""
    return f"{value:,.0f}" if 1 <= value < 1e6 else f"{value:g}"


def _line(style: LineStyle) -> dict[str, Any]:
    dashes = (0, style.dashes) if style.dashes else "solid"
    return {"color": style.color, "linestyle": dashes, "linewidth": _LINE}


@contextlib.contextmanager
def _figure(
    name: str, width: float = _WIDTH, height: float = _HEIGHT
) -> Iterator[tuple[Figure, Axes, io.BytesIO]]:
    """Make a figure with one set of axes under these settings, and a buffer for its SVG."""
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"datacomp_flyt {name}",
        "text.parse_math": False,  # names of columns may contain a dollar sign
        "font.family": "sans-serif",
        "font.size": 10.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "hatch.linewidth": 0.6,
        "axes.formatter.useoffset": False,
    }
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        # the browser has fonts for the characters that Matplotlib's font lacks
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.add_subplot(), io.BytesIO()


def _save(figure: Figure, svg: io.BytesIO) -> None:
    unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(svg, format="svg", metadata=unnamed, transparent=True)


def _inline(svg: io.BytesIO, text: str) -> Markup:
    """Make the svg element for a page, with a label for screen readers and ids of its own."""
    content = svg.getvalue().decode()
    content = content[content.index("<svg") :]
    # the rule would apply to the whole page; style.css.j2 has it for figures alone
    content = re.sub(
        r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", content, count=1, flags=re.S
    )
    prefix = f"f{hashlib.sha256(f'{text} {content}'.encode()).hexdigest()[:8]}-"
    content = re.sub(r'\bid="', f'id="{prefix}', content)
    content = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{prefix}", content)
    label = Markup('<svg role="img" aria-label="{}"').format(text)
    return label + Markup(re.sub(r'^<svg|(?<=pt") version="1.1"', "", content))
