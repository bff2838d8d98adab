"""docs/api.md documents the public names of the package."""

from __future__ import annotations

import re

import datacomp_flyt
from tests.docs.pages import REPOSITORY

PAGE = (REPOSITORY / "docs/api.md").read_text("utf-8")
PUBLIC = set(datacomp_flyt.__all__) - {"__version__"}


def test_the_page_has_every_public_name() -> None:
    """A directive in a comment announces a name that is not public yet."""
    names = set(re.findall(r"^(?:<!-- )?::: datacomp_flyt\.(\w+)", PAGE, re.MULTILINE))
    assert PUBLIC - names == set()


def test_every_documented_name_is_public() -> None:
    names = set(re.findall(r"^::: datacomp_flyt\.(\w+)$", PAGE, re.MULTILINE))
    assert names - PUBLIC == set()
