"""Renders a page from its sections, with escaping, and formats its numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from datacomp_flyt.report.provenance import digest_of_all

# Control characters, marks of writing direction and lone surrogates in captions and names. They are
# written as Python escapes (\\x1b), since HTML has no escape for them.
_CONTROLS = re.compile(
    r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_TEMPLATE, _ROUNDS = "index.html.j2", "rounds.html.j2"
_BLUE, _ORANGE = (0, 114, 178), (213, 94, 0)  # Okabe and Ito; the sign is printed, too
_EQUAL_CONTRAST = 0.179  # luminance on which black and white text have the same contrast


def render(page: dict[str, Any]) -> str:
    """Render the HTML document of a selection report."""
    return _render(_TEMPLATE, page)


def render_rounds(page: dict[str, Any]) -> str:
    """Render the HTML document of a Self-Filtering run."""
    return _render(_ROUNDS, page)


def _render(template: str, page: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("datacomp_flyt.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": count,
        "percent": percent,
        "number": number,
        "signed": signed,
        "shade": shade,
        "digest_of_all": digest_of_all,
    }
    return _CONTROLS.sub(_escape, environment.get_template(template).render(page))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def count(value: float) -> str:
    """Format a count: `1234567` -> `1,234,567`."""
    return f"{round(value):,}"


def percent(share: float) -> str:
    """Format a share in three digits: `0.0123` -> `1.23%`. Only 0 and 1 become 0% and 100%."""
    if share in (0.0, 1.0) or not math.isfinite(share):
        return f"{share:.0%}"
    share = min(100 * share, 99.9)
    return f"{share:.{min(max(2 - math.floor(math.log10(share)), 1), 4)}f}%"


def number(value: float, digits: int = 3, fixed: bool = False) -> str:
    """Format a number in a few digits, with trailing zeros if `fixed`; NaN becomes a dash."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 1e-12:  # the mean of standardised numbers is 0 up to rounding
        value = 0.0
    return f"{value:{'#' if fixed else ''}.{digits}g}".replace("-", "−")


def signed(value: float, decimals: int = 2) -> str:
    """Format a number with its sign, unless it rounds to 0; NaN becomes a dash."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def shade(value: float) -> str:
    """Make the CSS of a cell for a value from -1 to 1: blue above 0, orange below, white at 0."""
    if not math.isfinite(value):
        return "background:#fff;color:#000"
    strength = min(abs(value), 1.0)
    hue = _BLUE if value >= 0 else _ORANGE
    parts = [round(255 + strength * (part - 255)) for part in hue]
    color = "#000" if _luminance(parts) > _EQUAL_CONTRAST else "#fff"
    return f"background:#{parts[0]:02x}{parts[1]:02x}{parts[2]:02x};color:{color}"


def _luminance(parts: Sequence[int]) -> float:
    """Compute the relative luminance of red, green and blue (WCAG 2), from 0 to 1."""
    shares = (part / 255 for part in parts)
    linear = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
