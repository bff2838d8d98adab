"""The commands and examples of the pages run, or are marked with the reason why they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.checkout import write_programs
from tests.docs.pages import REPOSITORY, Block, Command, code_blocks, commands, pages
from tests.docs.run_pages import (
    POOLS,
    commands_of,
    copy_home,
    marks_without_use,
    reason_not_to_run,
    run_page,
    text_to_run,
)

PAGES = [page for page in pages() if commands_of(page)]


def blocks_of(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    monkeypatch.setattr("tests.docs.pages.REPOSITORY", folder)
    (folder / "page.md").write_text(text)
    return code_blocks(folder / "page.md")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("    a\n    b\n\ntext\n", [(1, "", "a\nb")]),
        ("text\n\n    a\n\n      b\ntext\n", [(3, "", "a\n\n  b")]),
        ("text\n    no block\n", []),
        ("- item\n\n    of the item\n\ntext\n\n    a\n", [(7, "", "a")]),
        ("```python\nimport a\n```\n", [(2, "python", "import a")]),
        ("1. item\n\n   ```sh\n   a\n   ```\n", [(4, "sh", "a")]),
        ("~~~\n    a\n```\n~~~\n    b\n", [(2, "", "    a\n```"), (5, "", "b")]),
        ("```text\nno command\n```\n\n    a", [(2, "text", "no command"), (5, "", "a")]),
    ],
)
def test_blocks(
    text: str, wanted: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [block[1:] for block in blocks_of(tmp_path, text, monkeypatch)] == wanted


@pytest.mark.parametrize(
    ("language", "text", "wanted"),
    [
        ("", "a\nb", [(1, "a", None), (2, "b", None)]),
        ("", "a \\\n  b\nc", [(1, "a \\\n  b", None), (3, "c", None)]),
        ("sh", "# comment\n\na", [(3, "a", None)]),
        ("", "$ a\nprinted\n\n$ b", [(1, "a", "printed\n\n"), (4, "b", "")]),
        ("console", "$ a \\\n  b\n  c", [(1, "a \\\n  b", "  c\n")]),
        ("text", "a", []),
        ("json", "{}", []),
        ("", "import a\na.b()", [(1, "import a\na.b()", None)]),
    ],
)
def test_commands(language: str, text: str, wanted: list[tuple]) -> None:
    listed = commands(Block("page.md", 1, language, text))
    assert [command[1:4] for command in listed] == wanted


def test_every_mark_belongs_to_a_command() -> None:
    assert marks_without_use() == []


def test_a_mark_without_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.run_pages.NOT_RUN", [("docs/none.md:no such", "a reason")])
    assert "docs/none.md:no such" in marks_without_use()


def test_more_than_half_of_the_commands_run() -> None:
    listed = [command for page in PAGES for command in commands_of(page)]
    running = [command for command in listed if reason_not_to_run(command) is None]
    assert len(running) > len(listed) / 2


def test_substitutions_leave_a_command_of_the_same_program() -> None:
    command = Command("docs/a.md", 1, "python baselines.py --name scs --scale large", None, "shell")
    text = text_to_run(command)
    assert text.startswith("python baselines.py --name scs --num_samples 1000 ")


def test_python_blocks_of_a_page_share_a_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "    echo 1 > n\n\n```python\nn = int(open('n').read())\n```\n\ntext\n\n    echo 2 > n\n"
    text += "\n```python\nassert n == 1\nassert int(open('n').read()) == 2\n```\n"
    text += "\n```python\nassert n == 3\n```\n"
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "datacomp").mkdir()
    write_programs(tmp_path / "bin")
    monkeypatch.setattr("tests.docs.pages.REPOSITORY", tmp_path)
    *ran, failed = run_page(tmp_path / "page.md", tmp_path)
    assert [result.state for result in ran] == ["ran"] * 4
    assert failed.state == "exit code 1"
    assert failed.error is not None
    assert "AssertionError" in failed.error


@pytest.fixture(scope="session", params=list(POOLS))
def made_home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    from tests.docs.checkout import make_home

    home = tmp_path_factory.mktemp("home") / request.param
    make_home(home, *POOLS[request.param])
    return home


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_page(page: Path, made_home: Path, tmp_path: Path) -> None:
    results = run_page(page, copy_home(made_home, tmp_path / "home"))
    failed = [result for result in results if result.error is not None]
    for result in failed:
        print(result.command.page, result.command.line, result.command.text)
        print(result.state, result.error, sep="\n")
    assert not failed
