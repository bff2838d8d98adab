"""Hooks of MkDocs that add files outside of docs/ to the site, so that links to them work.

Pages link to each other by their places in the repository, as GitHub shows them. The site's home is
README.md, a page of docs/ lies at its name, and any other file at its path in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
HOME = "README.md"
ROOT_PAGES = (HOME, "CONTRIBUTING.md", "CHANGELOG.md", "architecture.md", "patches/README.md")
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and every file to which a page links."""
    waiting = [*ROOT_PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (REPOSITORY / path).is_file():
            continue
        seen.add(path)
        if site_uri(path) not in files.src_uris:
            source = str(REPOSITORY / path)
            files.append(File.generated(config, site_uri(path), abs_src_path=source))
        if path.endswith(".md"):
            waiting += links(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between places in the repository into links between places in the site."""
    folder = posixpath.dirname(repository_path(page.file.src_uri))
    site_folder = posixpath.dirname(page.file.src_uri) or "."

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return posixpath.relpath(site_uri(target), site_folder)

    return _LINK.sub(moved, markdown)


def links(path: str) -> list[str]:
    """Return the paths in the repository of the files to which a page of the repository links."""
    folder = posixpath.dirname(path)
    text = (REPOSITORY / path).read_text("utf-8")
    return [posixpath.normpath(posixpath.join(folder, link)) for link in _LINK.findall(text)]


def site_uri(path: str) -> str:
    """Return the place in the site of a file of the repository."""
    return "index.md" if path == HOME else path.removeprefix("docs/")


def repository_path(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    if uri == "index.md":
        return HOME
    return f"docs/{uri}" if (REPOSITORY / "docs" / uri).is_file() else uri
