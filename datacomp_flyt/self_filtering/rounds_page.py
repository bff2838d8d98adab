"""Show all rounds of a run on one page, `RUN/report/index.html`, in the style of the reports.

python -m datacomp_flyt.self_filtering.rounds_page --run_dir RUN --rounds 3
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.rounds_page")

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datacomp_flyt import __version__
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.streams import say

FIGURES: tuple[tuple[str, str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    (
        "Clean pairs in the subset",
        "Precision: share of a subset's draws that are of clean pairs. Recall: share of the pool's "
        "clean pairs that it has. The confident part excludes the random share.",
        (
            ("precision", ("subset", "clean_precision")),
            ("recall", ("subset", "clean_recall")),
            ("precision, confident part", ("confident", "clean_precision")),
            ("recall, confident part", ("confident", "clean_recall")),
        ),
    ),
    (
        "Noise that the confident part leaves out",
        "Precision: share of the pairs left out that are noise. Recall: share of the pool's noise "
        "that is left out.",
        (
            ("precision", ("confident", "noise_precision")),
            ("recall", ("confident", "noise_recall")),
        ),
    ),
    (
        "Separation by the scores",
        "AUC: how often a clean pair scores above a noisy one, over the pool and over the pairs "
        "that the round's models were trained on. Unseen and seen: by the model that has not "
        "trained on a pair, and by the one that has.",
        (
            ("pool", ("auc", "self_filtering")),
            ("pairs of the subset", ("auc_in_subset", "self_filtering")),
            ("pairs of the subset, unseen", ("auc_in_subset", "self_filtering_unseen")),
            ("pairs of the subset, seen", ("auc_in_subset", "self_filtering_seen")),
        ),
    ),
    (
        "Change from round to round",
        "Overlap of a subset with the one before, Σ min / Σ max of the shares of draws; and the "
        "rank correlation of a round's scores with those of the round before.",
        (("overlap of subsets", ("overlap",)), ("correlation of scores", ("rank_correlation",))),
    ),
    (
        "Diversity",
        "Share of the pool's caption words (5 occurrences or more) that a subset has.",
        (("words", ("word_coverage",)),),
    ),
)
"""Each figure: its title, its note, and its lines as (label, path in a round's diagnostics)."""


def value_at(diagnostics: Mapping[str, Any], path: Sequence[str]) -> float:
    """Return a number of a round's diagnostics; NaN where there is none.

    Raises:
        ValueError: the value is no number.
    """
    value: Any = diagnostics
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float("nan") if value is None else _as_float(value)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, OverflowError):
        raise ValueError(f"{value!r} is no number") from None


def _checked(diagnostics: Any) -> dict[str, Any]:
    """Return a round's diagnostics. Raises ValueError where they lack numbers of the page."""
    if not isinstance(diagnostics, dict):
        raise ValueError("it holds no diagnostics")
    optional = {"effective_words"} & diagnostics.keys()
    for name in ("round", "draws", "distinct", "effective", *optional):
        value = diagnostics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(_as_float(value)):
            raise ValueError(f"{name!r} is no number")
    for _, _, lines in FIGURES:
        for _, path in lines:
            value_at(diagnostics, path)
    return diagnostics


def _read_rounds(run_dir: Path, rounds: int) -> list[dict[str, Any]]:
    """Read the diagnostics of rounds 0 to `rounds`."""
    found = []
    for round_index in range(rounds + 1):
        path = run_dir / f"round_{round_index}" / "diagnostics.json"
        try:
            found.append(_checked(json.loads(path.read_bytes())))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be read ({error}): give the same `datacomp-flyt self_filter` again"
            ) from None
    return found


def write_page(run_dir: Path, rounds: int) -> Path:
    """Write the page, and return its path.

    Args:
        run_dir: the run's folder.
        rounds: the last round.

    Raises:
        InputError: diagnostics of a round are missing or damaged, or a package is missing.
    """
    with needs_extra("report"):
        from datacomp_flyt.report.figures import STYLES, by_round
        from datacomp_flyt.report.page import render_rounds
    diagnostics = _read_rounds(run_dir, rounds)
    figures = []
    for title, note, lines in FIGURES:
        values = {label: [value_at(one, path) for one in diagnostics] for label, path in lines}
        values = {k: v for k, v in values.items() if not all(map(math.isnan, v))}
        if values:
            styles = dict(zip(values, STYLES, strict=False))
            figures.append(
                {
                    "title": title,
                    "note": note,
                    "figure": by_round(list(values.values()), title),
                    "lines": [(label, styles[label], values[label]) for label in values],
                }
            )
    pool = diagnostics[0]["distinct"]
    page = render_rounds(
        {"rounds": diagnostics, "figures": figures, "version": __version__, "pool": pool}
    )
    out = check_save_path(run_dir / "report" / "index.html", "--run_dir")
    with atomic_write(out) as file:
        file.write(page.encode())
    return out


def main() -> None:
    """Parse the flags, call `write_page` and print the page's path."""
    parser = Parser(description=__doc__)
    parser.add_argument("--run_dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--rounds", type=int, required=True, help="the last round")
    args = parser.parse_args()
    say(f"saved {write_page(args.run_dir, args.rounds)}")
