"""Habits of the code and of the tests."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import REPOSITORY


def imports_of_test_modules(path: Path) -> list[str]:
    """Return the test modules that a file imports, wherever in the file."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        modules += [n for n in names if n.rpartition(".")[2].startswith("test_")]
    return modules


def test_no_helper_is_imported_from_a_test_module() -> None:
    """Helpers are in `conftest.py` or in modules of their own."""
    importing = {
        path.relative_to(REPOSITORY).as_posix(): modules
        for path in (REPOSITORY / "tests").rglob("*.py")
        if (modules := imports_of_test_modules(path))
    }
    assert importing == {}
