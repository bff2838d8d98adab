"""The picture of README.md shows the results that are stored."""

from __future__ import annotations

from html import unescape

import pytest

pytest.importorskip("matplotlib")

from tools.draw_readme_picture import BARS, PICTURE, accuracies, stages


def test_the_picture_has_the_stored_results() -> None:
    picture = unescape(PICTURE.read_text("utf-8"))
    texts = [f"{mean:.1f} ± {error:.1f}" for mean, error in accuracies().values()]
    texts += BARS.values()
    texts += [line for title, text in stages() for line in (title, *text.split("\n"))]
    assert [text for text in texts if text not in picture] == []
