"""All rounds of a run on one page: `RUN/report/index.html`, in the style of the reports.

python -m datacomp_flyt.self_filtering.page --run_dir RUN --rounds 3
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.page")

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

# title of a figure, what it means, and its lines: label, path in a round's diagnostics
FIGURES: tuple[tuple[str, str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    (
        "Clean pairs in the mix",
        "Precision: share of a mix's draws that are of clean pairs. Recall: share of the pool's "
        "clean pairs that it has. The confident part is without the random share.",
        (
            ("precision", ("mix", "clean_precision")),
            ("recall", ("mix", "clean_recall")),
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
        "What the scores tell apart",
        "How often a clean pair scores above a noisy one (AUC), over the pool and over the pairs "
        "that the round's models were trained on; unseen and seen: by the model that has not "
        "trained on a pair, and by the one that has.",
        (
            ("pool", ("auc", "self_filtering")),
            ("pairs of the mix", ("auc_in_mix", "self_filtering")),
            ("pairs of the mix, unseen", ("auc_in_mix", "self_filtering_unseen")),
            ("pairs of the mix, seen", ("auc_in_mix", "self_filtering_seen")),
        ),
    ),
    (
        "Change from round to round",
        "Overlap of a mix with the one before, Σ min / Σ max of the shares of draws; and the rank "
        "correlation of a round's scores with those of the round before.",
        (("overlap of mixes", ("overlap",)), ("correlation of scores", ("rank_correlation",))),
    ),
    (
        "Diversity",
        "Share of the pool's caption words (5 occurrences or more) that a mix has.",
        (("words", ("word_coverage",)),),
    ),
)


def value_at(found: Mapping[str, Any], path: Sequence[str]) -> float:
    """A number of a round's diagnostics; NaN where it has none."""
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float("nan") if value is None else _number(value)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, OverflowError):
        raise ValueError(f"{value!r} is no number") from None


def _round_of(found: Any) -> dict[str, Any]:
    """Diagnostics of a round. Raises ValueError where the page cannot be made of them."""
    if not isinstance(found, dict):
        raise ValueError("it holds no diagnostics")
    for name in ("round", "draws", "distinct", "effective", *{"effective_words"} & found.keys()):
        value = found.get(name)
        if not isinstance(value, int | float) or not math.isfinite(_number(value)):
            raise ValueError(f"{name!r} is no number")
    for _, _, lines in FIGURES:
        for _, place in lines:
            value_at(found, place)
    return found


def write_page(run_dir: Path, rounds: int) -> Path:
    """Write the page.

    Raises:
        InputError: diagnostics of a round are missing, or a package is.
    """
    with needs_extra("report"):
        from datacomp_flyt.report.figures import STYLES, by_round
        from datacomp_flyt.report.page import render_rounds
    found = []
    for number in range(rounds + 1):
        path = run_dir / f"round_{number}" / "diagnostics.json"
        try:
            found.append(_round_of(json.loads(path.read_bytes())))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be read ({error}): give the same `datacomp-flyt self_filter` again"
            ) from None
    figures = []
    for title, note, lines in FIGURES:
        values = {label: [value_at(one, path) for one in found] for label, path in lines}
        values = {k: v for k, v in values.items() if any(number == number for number in v)}
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
    page = render_rounds(
        {"rounds": found, "figures": figures, "version": __version__, "pool": found[0]["distinct"]}
    )
    out = check_save_path(run_dir / "report" / "index.html", "--run_dir")
    with atomic_write(out) as file:
        file.write(page.encode())
    return out


def main() -> None:
    """The command above."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    say(f"saved {write_page(args.run_dir, args.rounds)}")
