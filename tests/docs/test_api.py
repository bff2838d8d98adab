"""docs/api.md documents the public names of the package."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

import datacomp_flyt
from tests.docs.pages import REPOSITORY

PAGE = (REPOSITORY / "docs/api.md").read_text("utf-8")
PUBLIC = set(datacomp_flyt.__all__) - {"__version__"}


def test_the_page_has_every_public_name_once() -> None:
    names = re.findall(r"^::: datacomp_flyt\.(\w+)$", PAGE, re.MULTILINE)
    assert sorted(names) == sorted(PUBLIC)


def our_classes(hint: Any) -> set[type]:
    """Return the classes of this package in a type hint."""
    inner = set().union(*map(our_classes, typing.get_args(hint)))
    is_ours = inspect.isclass(hint) and hint.__module__.startswith("datacomp_flyt.")
    return inner | ({hint} if is_ours else set())


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_classes_that_functions_take_or_return_are_public(name: str) -> None:
    function = getattr(datacomp_flyt, name)
    if inspect.isclass(function):
        return
    used = our_classes(tuple[tuple(typing.get_type_hints(function).values())])  # type: ignore[misc]
    assert {one.__name__ for one in used} <= PUBLIC
