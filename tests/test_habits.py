"""Habits of the code and of the tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


PRODUCT = ("datacomp_flyt", "baselines_plugin", "benchmarks", "tools")
MOST_LINES, MOST_POSITIONAL = 60, 8
QUESTION_WORDS = {"What", "Which", "Where", "How", "Whether"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def product_nodes() -> Iterator[tuple[str, ast.AST]]:
    """Yield the syntax nodes of the product's files, each with the path of its file."""
    for folder in PRODUCT:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            name = path.relative_to(REPOSITORY).as_posix()
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                yield name, node


def test_functions_are_short() -> None:
    """No product function has more than 60 lines or more than 8 positional parameters."""
    functions = [(path, node) for path, node in product_nodes() if isinstance(node, FUNCTIONS)]
    assert len(functions) > 1000
    too_long, too_wide = {}, {}
    for path, node in functions:
        lines = (node.end_lineno or 0) - node.lineno + 1
        positional = len(node.args.posonlyargs) + len(node.args.args)
        if lines > MOST_LINES:
            too_long[f"{path}: {node.name}"] = lines
        if positional > MOST_POSITIONAL:
            too_wide[f"{path}: {node.name}"] = positional
    assert (too_long, too_wide) == ({}, {})


def test_docstrings_start_with_their_subject() -> None:
    """No docstring of the product starts with a question word."""
    documented = (ast.Module, ast.ClassDef, *FUNCTIONS)
    docstrings = [
        (path, docstring)
        for path, node in product_nodes()
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
    ]
    assert len(docstrings) > 1000
    first_words = [(path, re.findall(r"\w+", text)[:1], text) for path, text in docstrings]
    assert [(path, text) for path, word, text in first_words if set(word) & QUESTION_WORDS] == []
