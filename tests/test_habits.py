"""Habits of the tests themselves."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import REPOSITORY

NOT_YET_MOVED = {
    "tests/baselines_plugin/test_tables_as_people_have_them.py",
    "tests/cli/test_available.py",
    "tests/cli/test_exits_of_modules.py",
    "tests/cli/test_files_of_a_scorer.py",
    "tests/faults/test_clock.py",
    "tests/faults/test_damaged.py",
    "tests/faults/test_full_disk.py",
    "tests/faults/test_read_errors.py",
    "tests/samplers/test_counts_like_naive.py",
    "tests/scorers/base/test_empty_and_mended.py",
    "tests/scorers/base/test_failed_downloads.py",
    "tests/scorers/base/test_notes_are_hidden.py",
    "tests/scorers/base/test_nothing_usable.py",
    "tests/scorers/base/test_score_pool.py",
    "tests/scorers/hype/test_hype_public.py",
    "tests/scorers/hype/test_hype_reference.py",
    "tests/scorers/test_norm_sim.py",
    "tests/scorers/test_norm_sim_d.py",
}
"""Files that still import helpers from test modules; the list may only become shorter."""


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
    assert {path: m for path, m in importing.items() if path not in NOT_YET_MOVED} == {}
