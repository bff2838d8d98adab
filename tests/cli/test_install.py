"""`datacomp-flyt install` on small files; tests/host runs it on whole checkouts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacomp_flyt.cli import main
from datacomp_flyt.datacomp import checkout_patch
from datacomp_flyt.datacomp.checkout_patch import (
    Insertion,
    Patch,
    install,
    is_installed,
    load_patches,
    revert,
)
from tests.conftest import REPOSITORY, refusal

CLEAN = b"one\ntwo\r\n\n    three # \xc3\xa9\nfour\n"
FilesIn = Callable[[], dict[str, bytes]]


def patch_of(clean: bytes, patched: bytes, *insertions: tuple[int, list[str]]) -> Patch:
    """Make a patch from the file without and with the lines."""
    return Patch(
        "someone/something",
        "0123abc",
        "main.py",
        hashlib.sha256(clean).hexdigest(),
        hashlib.sha256(patched).hexdigest(),
        tuple(Insertion(after, tuple(lines)) for after, lines in insertions),
    )


CASES: dict[str, tuple[bytes, list[tuple[int, list[str]]]]] = {
    "in the middle": (b"one\ntwo\r\nA\nB\n\n    three # \xc3\xa9\nfour\n", [(2, ["A", "B"])]),
    "at the top": (b"A\n" + CLEAN, [(0, ["A"])]),
    "at the end": (CLEAN + b"A\n", [(5, ["A"])]),
    "everywhere": (
        b"T\none\ntwo\r\n\n  M\n\n    three # \xc3\xa9\nfour\nE\nE\n",
        [(0, ["T"]), (3, ["  M", ""]), (5, ["E", "E"])],
    ),
    "lines that are there already": (
        b"one\none\ntwo\r\n\n    three # \xc3\xa9\nfour\nfour\n", [(1, ["one"]), (5, ["four"])]
    ),
    "next to one another": (
        b"one\nA\ntwo\r\nB\n\nC\n    three # \xc3\xa9\nfour\n",
        [(1, ["A"]), (2, ["B"]), (3, ["C"])],
    ),
}  # fmt: skip
CASE = pytest.mark.parametrize(("patched", "insertions"), CASES.values(), ids=CASES.keys())


def checkout(folder: Path, content: bytes = CLEAN, mode: int = 0o644) -> Path:
    path = folder / "main.py"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@CASE
@pytest.mark.parametrize("mode", [0o644, 0o755, 0o600])
def test_in_and_out_again(
    tmp_path: Path, patched: bytes, insertions: list[tuple[int, list[str]]], mode: int
) -> None:
    path = checkout(tmp_path, mode=mode)
    patches = [patch_of(CLEAN, patched, *insertions)]
    for content, function, done in [
        (CLEAN, is_installed, False),
        (CLEAN, revert, False),
        (patched, install, True),
        (patched, is_installed, True),
        (patched, install, False),
        (CLEAN, revert, True),
        (CLEAN, revert, False),
        (CLEAN, is_installed, False),
    ]:
        assert function(tmp_path, patches=patches) is done
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == mode
        assert list(tmp_path.iterdir()) == [path]


def test_what_is_already_right_is_not_written_again(tmp_path: Path) -> None:
    patches = [patch_of(CLEAN, *CASES["at the top"][:1], *CASES["at the top"][1])]
    path = checkout(tmp_path)
    install(tmp_path, patches=patches)
    before = path.stat()
    install(tmp_path, patches=patches)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


PATCH = patch_of(CLEAN, CASES["everywhere"][0], *CASES["everywhere"][1])


@pytest.mark.parametrize("function", [install, is_installed, revert])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        CLEAN + b"\n",
        CLEAN[:-1],
        CLEAN.replace(b"\r\n", b"\n"),
        CLEAN.replace(b"four", b"five"),
        CASES["at the top"][0],
        CASES["everywhere"][0] + b"\n",
        CASES["everywhere"][0].replace(b"  M\n", b""),
    ],
)
def test_an_unknown_file_is_refused_and_left(
    tmp_path: Path,
    files_in: FilesIn,
    function: Callable[..., bool],
    content: bytes,
) -> None:
    path = checkout(tmp_path, content)
    message = refusal(function, tmp_path, patches=[PATCH])
    assert str(path) in message
    assert "someone/something 0123abc" in message
    assert files_in() == {"main.py": content}


@pytest.mark.parametrize("function", [install, is_installed, revert])
@pytest.mark.parametrize("folder", [".", "nowhere", "other.py"])
def test_a_folder_without_the_file(
    tmp_path: Path, function: Callable[..., bool], folder: str
) -> None:
    (tmp_path / "other.py").write_bytes(CLEAN)
    message = refusal(function, tmp_path / folder, patches=[PATCH])
    assert f"{tmp_path / folder} has no main.py" in message


@pytest.mark.parametrize("function", [install, revert])
def test_a_damaged_patch_changes_nothing(
    tmp_path: Path, files_in: FilesIn, function: Callable[..., bool]
) -> None:
    """The patched file would have another hash than the patch says."""
    start = CLEAN if function is install else CASES["at the top"][0]
    checkout(tmp_path, start)
    damaged = patch_of(CLEAN, CASES["at the top"][0], (0, ["A", "B"]))
    assert "damaged" in refusal(function, tmp_path, patches=[damaged])
    assert files_in() == {"main.py": start}


def test_the_patch_that_fits_is_taken(tmp_path: Path) -> None:
    others = [
        patch_of(b"a\n", b"A\na\n", (0, ["A"])),
        PATCH,
        patch_of(b"b\n", b"A\nb\n", (0, ["A"])),
    ]
    path = checkout(tmp_path)
    assert install(tmp_path, patches=others)
    assert path.read_bytes() == CASES["everywhere"][0]
    path.write_bytes(b"b\n")
    assert install(tmp_path, patches=others)
    assert path.read_bytes() == b"A\nb\n"


# ----------------------------------------------------------------------------- any files


LINES = st.lists(
    st.binary(max_size=5).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"") + b"\n"),
    max_size=12,
)
ADDED = st.text(
    st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=5
)


@given(st.data(), LINES)
def test_taking_out_undoes_putting_in(data: st.DataObject, lines: list[bytes]) -> None:
    places = data.draw(st.sets(st.integers(0, len(lines)), max_size=4))
    insertions = [
        (place, data.draw(st.lists(ADDED, min_size=1, max_size=3))) for place in sorted(places)
    ]
    clean = b"".join(lines)
    wanted = list(lines)
    for place, added in reversed(insertions):
        wanted[place:place] = [line.encode() + b"\n" for line in added]
    patch = patch_of(clean, b"".join(wanted), *insertions)
    patched = patch.applied_to(clean)
    assert patched == b"".join(wanted)
    assert patch.removed_from(patched) == clean


(PACKAGED,) = load_patches()


@given(st.lists(st.sampled_from([b"\n", b"x\n", b"    args\r\n"]), min_size=168, max_size=180))
def test_the_packaged_patch_only_adds(lines: list[bytes]) -> None:
    clean = b"".join(lines)
    patched = PACKAGED.applied_to(clean)
    assert PACKAGED.removed_from(patched) == clean
    added = [line.encode() + b"\n" for part in PACKAGED.insertions for line in part.lines]
    left = iter(patched.splitlines(keepends=True))
    assert all(line in left for line in lines), "an old line is gone or moved"
    assert sorted(patched.splitlines(True)) == sorted(lines + added)


def test_the_packaged_patch() -> None:
    assert (PACKAGED.repository, PACKAGED.commit) == ("mlfoundations/datacomp", "4a8df19")
    assert PACKAGED.file == "baselines.py"
    places = [part.after_line for part in PACKAGED.insertions]
    assert places == sorted(set(places))
    lines = [line for part in PACKAGED.insertions for line in part.lines]
    assert len(lines) <= 6, "as few lines as will do"
    assert "baselines_plugin" in lines[0]
    assert load_patches(REPOSITORY / "patches") == [PACKAGED]


def test_patches_are_read_from_json_in_the_order_of_their_names(tmp_path: Path) -> None:
    first = patch_of(CLEAN, CASES["at the top"][0], (0, ["A"]))
    for name, patch in {"b.json": PATCH, "a.json": first}.items():
        (tmp_path / name).write_text(json.dumps(asdict(patch)))
    (tmp_path / "README.md").write_text("no patch")
    assert load_patches(tmp_path) == [first, PATCH]


# --------------------------------------------------------------------------- as a command


def ended(*arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        main(["install", *arguments])
    return caught.value.code


def test_exit_codes_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout_patch, "load_patches", lambda: [PATCH])
    path = checkout(tmp_path)
    where = str(tmp_path)
    for arguments, code, said in [
        (["--check"], 1, "not installed"),
        ([], 0, "installed"),
        (["--check"], 0, "installed"),
        ([], 0, "installed already"),
        (["--revert"], 0, "reverted"),
        (["--revert"], 0, "nothing to revert"),
    ]:
        assert ended(where, *arguments) == code
        captured = capsys.readouterr()
        assert captured.out.splitlines()[0] == f"{where}: {said}"
        assert captured.err == ""
    assert path.read_bytes() == CLEAN


@pytest.mark.parametrize("flags", [[], ["--check"], ["--revert"]])
@pytest.mark.parametrize("content", [None, b"# another baselines.py\n"])
def test_the_command_refuses_with_one_sentence(
    tmp_path: Path,
    files_in: FilesIn,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    content: bytes | None,
) -> None:
    if content is not None:
        (tmp_path / "baselines.py").write_bytes(content)
    before = files_in()
    assert ended(str(tmp_path), *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("datacomp-flyt install: error: ")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert files_in() == before


def test_check_and_revert_do_not_go_together(tmp_path: Path) -> None:
    assert ended(str(tmp_path), "--check", "--revert") == 2
