"""Names from files cannot control a terminal, break a line, or look like other text."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.errors import InputError, printable
from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.progress import Progress
from datacomp_flyt.streams import say
from tests.baselines_plugin.job import in_process
from tests.cli.commands import run
from tests.conftest import REPOSITORY, make_pool, sorted_uids, write_files

POOL = make_pool(30)
UIDS = sorted_uids(POOL.uids)
NAMES = (
    "a\nvalid",  # a line of its own
    "a\rvalid",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b31m",  # the same in one character
    "\x08\x08\x08\x7f",
    "\u202egpj.tset",  # written from right to left
    "\u2066a\u2069",
    "a\u2028b\u2029c\x85d",  # lines to some
    "\u200b\ufeff\u00ad",  # not to be seen
    "\udcff\udc80",  # bytes that are no UTF-8
)


@pytest.fixture(params=NAMES, ids=ascii)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def checked(text: str) -> list[str]:
    """Return the printed lines, and check that all characters are printable."""
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    assert all(line.isprintable() for line in lines)
    return lines


def test_what_prints_stays() -> None:
    for text in ("", "a b", "naïve 映画 😀", "a\\nb", "tab is spelled"):
        assert printable(text) == text
    assert printable("a\tb\\\n\x00") == r"a\tb\\n\x00"


def test_lines(capsys: pytest.CaptureFixture[str], name: str) -> None:
    say("first", f"  {name}: 3", Path(name), error=True)
    assert len(checked(capsys.readouterr().err)) == 3


def test_sentences(name: str) -> None:
    assert str(InputError(f"{name} is damaged")).isprintable()


def test_check(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    write_subset(tmp_path / name, UIDS)
    code, out, err = run(capsys, "check", tmp_path / name)
    assert (code, err) == (0, "")
    assert len(checked(out)) == 8
    np.save(tmp_path / "s.npy", UIDS[::-1])
    (tmp_path / "s.npy").rename(tmp_path / name)
    code, out, err = run(capsys, "check", tmp_path / name)
    assert code == 1
    assert "valid" not in checked(out)


@pytest.mark.parametrize("words", [("check_parts", "--subset", "s.npy"), ("check", "s.npy"), ()])
def test_words_of_the_command_line(
    capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...]
) -> None:
    """A shell replaces `*` by names of files."""
    code, _, err = run(capsys, *words, f"--{name}")
    assert code == 2
    checked(err)


def test_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    folder, manifest = tmp_path / "pool", tmp_path / "m.json"
    write_files(folder, POOL.metadata, 2)
    code, out, _ = run(capsys, "manifest", folder, "--save_path", manifest)
    assert code == 0
    held = json.loads(manifest.read_text())
    held["files"][0]["name"] = f"{name}.parquet"
    manifest.write_text(json.dumps(held))
    code, out, err = run(capsys, "manifest", folder, "--check", manifest)
    assert code == 2
    assert len(checked(out)) == 2
    assert len(checked(err)) == 1


def test_a_selection(tmp_path: Path, name: str) -> None:
    """The name may be that of a column, a folder or a file."""
    # Arrow takes neither columns nor paths that are no UTF-8
    column = "plain" if "\udcff" in name else name
    metadata = {"uid": POOL.uids, column: np.arange(30.0)}
    flags = ("--name", "sum", "--score_columns", column, "--sampling", "top_fraction")
    ended = in_process(
        *flags, "--fraction", "0.5",
        "--metadata_dir", write_files(tmp_path / "m" / column, metadata, 2),
        "--save_path", str(tmp_path / f"{name}.npy"), "--save_scores", str(tmp_path / "s.parquet"),
        "--num_workers", "1",
    )  # fmt: skip
    assert (ended.code, ended.stderr) == (0, "")
    assert checked(ended.stdout)[0] == "running: sum"
    absent = in_process(
        *flags[:3], f"absent {column}", *flags[4:], "--fraction", "0.5",
        "--metadata_dir", str(tmp_path / "m" / column), "--save_path", str(tmp_path / "t.npy"),
    )  # fmt: skip
    assert absent.code == 2
    assert len(checked(absent.stderr)) == 1


def test_labels_of_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("datacomp_flyt.progress._LOG_INTERVAL", 0.0)
    with Progress(f"reading {name}", 2, "row") as progress:
        progress.note(f"at {name}")
        progress.update()
    assert checked(capsys.readouterr().err) == [
        f"reading {printable(name)}: 50% (1 of 2 rows, 0:00, at {printable(name)})"
    ]


def test_nothing_else_prints() -> None:
    """`say` is the only way to stdout and stderr."""
    found = []
    for package in ("datacomp_flyt", "baselines_plugin"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                if called in ("print", "tqdm", "sys.stdout.write", "sys.stderr.write"):
                    found.append((str(path.relative_to(REPOSITORY)), called))
    assert found == [
        ("datacomp_flyt/progress.py", "tqdm"),
        ("datacomp_flyt/streams.py", "print"),
    ]
