"""Links between pages lead to files and headings, on GitHub and in the site."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "patches/*.md", "datacomp_flyt/demo/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
_FENCED = re.compile(r"^ *(```|~~~).*?^ *\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Return GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", _FENCED.sub("", path.read_text("utf-8")), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def broken_links(path: Path) -> list[str]:
    """Return the links of a page whose file or heading does not exist."""
    broken = []
    for link in _LINK.findall(_FENCED.sub("", path.read_text("utf-8"))):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_of_a_page(path: Path) -> None:
    assert broken_links(path) == []


def test_broken_links_are_reported(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`-c, [d](page.md)\n[1](none.md) [2](page.md#a-b-c-d) [3](#a) [4](https://a.b/c)"
    )
    assert broken_links(page) == ["none.md", "#a"]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))):
        pytest.skip("the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "select/index.html").exists()
    assert (tmp_path / "architecture/index.html").exists()
