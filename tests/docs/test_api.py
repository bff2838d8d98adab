"""docs/api.md documents the public names of the package."""

from __future__ import annotations

import re

import datacomp_flyt
from tests.docs.pages import REPOSITORY


def test_the_page_has_every_public_name() -> None:
    page = (REPOSITORY / "docs/api.md").read_text("utf-8")
    names = re.findall(r"^::: datacomp_flyt\.(\w+)$", page, re.MULTILINE)
    assert sorted(names) == sorted(set(datacomp_flyt.__all__) - {"__version__"})
