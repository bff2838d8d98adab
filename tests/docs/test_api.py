"""docs/api.md documents the public names of the package."""

from __future__ import annotations

import re

import datacomp_flyt
from tests.docs.pages import REPOSITORY

PAGE = (REPOSITORY / "docs/api.md").read_text("utf-8")
PUBLIC = set(datacomp_flyt.__all__) - {"__version__"}


def test_the_page_has_every_public_name_once() -> None:
    names = re.findall(r"^::: datacomp_flyt\.(\w+)$", PAGE, re.MULTILINE)
    assert sorted(names) == sorted(PUBLIC)
