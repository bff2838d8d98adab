"""The diagram and the table of architecture.md are those of the code."""

from __future__ import annotations

from tools.draw_architecture import PAGE, generated, reduce


def test_the_committed_page_is_the_generated_one() -> None:
    page = PAGE.read_text("utf-8")
    assert generated(page) == page, "run: python -m tools.draw_architecture"


def test_an_arrow_with_a_longer_path_beside_it_is_left_out() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert reduce(graph) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}
