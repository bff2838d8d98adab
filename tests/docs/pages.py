"""Code blocks of Markdown pages, and the commands in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^ *(`{3,}|~{3,}) *(\w*)")
_LIST_ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d+[.)]) +\S")
_PYTHON = re.compile(r"^(?:import|from) \w")


class Block(NamedTuple):
    """A code block of a page.

    Attributes:
        page: the page's path below the repository.
        line: the number of the block's first line, from 1.
        language: what the fence says, or "" for an indented block.
        text: the code, without indentation and fences.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def is_python(self) -> bool:
        return self.language in ("python", "py") or bool(
            not self.language and _PYTHON.match(self.text)
        )

    @property
    def is_shell(self) -> bool:
        return self.language in ("", "sh", "bash", "shell", "console") and not self.is_python


class Command(NamedTuple):
    """A command of a shell block, or a whole Python block.

    Attributes:
        page: the page's path below the repository.
        line: the number of the command's first line.
        text: the command, continuation lines included, without the prompt.
        output: what the page prints below a command with a prompt, or None.
        language: "shell" or "python".
    """

    page: str
    line: int
    text: str
    output: str | None
    language: str


def pages() -> list[Path]:
    """Return the pages whose commands are run: README.md and those of docs/."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]


def code_blocks(path: Path) -> list[Block]:
    """Return the code blocks of a page in order, fenced ones and indented ones outside lists."""
    page, lines = path.relative_to(REPOSITORY).as_posix(), path.read_text("utf-8").splitlines()
    blocks: list[Block] = []
    row, in_list, may_begin = 0, False, True
    while row < len(lines):
        fence = _FENCE.match(lines[row])
        end = row + 1
        if fence:
            while end < len(lines) and not lines[end].strip().startswith(fence[1]):
                end += 1
            blocks.append(Block(page, row + 2, fence[2], _unindent(lines[row + 1 : end])))
            end += 1
        elif lines[row].startswith("    ") and lines[row].strip() and may_begin and not in_list:
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            blocks.append(Block(page, row + 1, "", _unindent(lines[row:end])))
        elif _LIST_ITEM.match(lines[row]):
            in_list = True
        elif lines[row].strip() and not lines[row].startswith(" ") and may_begin:
            in_list = False
        may_begin = bool(fence) or not lines[end - 1].strip()  # no block interrupts a paragraph
        row = end
    return blocks


def _unindent(lines: list[str]) -> str:
    width = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[width:] for line in lines).rstrip()


def commands(block: Block) -> list[Command]:
    """Return the commands of a block. With `$ ` prompts, lines without a prompt are output."""
    if block.is_python:
        return [Command(block.page, block.line, block.text, None, "python")]
    if not block.is_shell:
        return []
    lines = block.text.splitlines()
    has_prompts = any(line.startswith("$ ") for line in lines)
    listed: list[Command] = []
    row = 0
    while row < len(lines):
        first = row
        while lines[row].endswith("\\") and row + 1 < len(lines):
            row += 1
        text = "\n".join(lines[first : row + 1])
        row += 1
        if has_prompts and text.startswith("$ "):
            listed.append(Command(block.page, block.line + first, text[2:], "", "shell"))
        elif has_prompts and listed:
            output = f"{listed[-1].output}{text}\n"
            listed[-1] = listed[-1]._replace(output=output)
        elif text.strip() and not text.startswith("#"):
            listed.append(Command(block.page, block.line + first, text, None, "shell"))
    return listed
