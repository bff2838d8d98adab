"""Lock files: links are not followed, and other programs' files neither written nor removed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from datacomp_flyt.files.locks import lock_outputs
from tests.conftest import refusal
from tests.files.lock_holder import hold, take

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no locks")

CONTENT = b"precious\n" * 100


def places(folder: Path) -> dict[Path, Path]:
    """Outputs, and the lock file of each."""
    (folder / "run").mkdir()
    return {
        folder / "run": folder / "run" / ".lock",
        folder / "subset.npy": folder / ".subset.npy.lock",
        folder / "run" / "a b.npy": folder / "run" / ".a b.npy.lock",
    }


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", ["file", "nowhere", "folder", "itself", "hidden", "device"])
def test_links_are_refused(tmp_path: Path, number: int, kind: str) -> None:
    place, lock = list(places(tmp_path).items())[number]
    victim = tmp_path / "victim"
    victim.write_bytes(CONTENT)
    leads_to = {
        "file": victim,
        "nowhere": tmp_path / "new",
        "folder": tmp_path,
        "itself": lock,
        "hidden": tmp_path / ".victim",
        "device": Path(os.devnull),
    }[kind]
    (tmp_path / ".victim").write_text(f"process 1 on {socket.gethostname()}\n")
    lock.symlink_to(leads_to)
    said = refusal(take, place)
    assert str(lock) in said
    assert "a link" in said
    assert lock.is_symlink()
    assert victim.read_bytes() == CONTENT
    assert (tmp_path / ".victim").read_text().startswith("process 1")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [CONTENT, b"\0", b"process\n", b"process 12 on a\nprocess 13 on b\n", b"pid=3", b"\xff" * 999],
)
def test_files_of_other_programs_stay(tmp_path: Path, content: bytes) -> None:
    for place, lock in places(tmp_path).items():
        lock.write_bytes(content)
        said = refusal(take, place)
        assert str(lock) in said
        assert "no lock of this program" in said
        assert lock.read_bytes() == content


def test_an_empty_file_of_another_program_is_locked_and_left(tmp_path: Path) -> None:
    for place, lock in places(tmp_path).items():
        lock.touch()
        with lock_outputs(place):
            assert "is being written by another run" in refusal(take, place)
        assert lock.read_bytes() == b""


def test_what_is_no_file(tmp_path: Path) -> None:
    for number, (place, lock) in enumerate(places(tmp_path).items()):
        os.mkfifo(lock) if number else lock.mkdir()
        assert str(place) in refusal(take, place)
        assert lock.exists()


@pytest.mark.parametrize("left", ["process 1 on another\n", "process 99999 on a-b.c"])
def test_what_a_killed_run_left_is_taken_over(tmp_path: Path, left: str) -> None:
    for place, lock in places(tmp_path).items():
        lock.write_text(left)
        with lock_outputs(place):
            assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
        assert not lock.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "parent", "new file", "around", "twice"])
def test_names_of_one_output_have_one_lock(tmp_path: Path, kind: str) -> None:
    """A link is written through, so its lock is that of its target."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.npy").touch()
    (tmp_path / "a.npy").symlink_to("real/a.npy")
    (tmp_path / "b.npy").symlink_to("a.npy")
    (tmp_path / "link").symlink_to("real")
    one, other = {
        "file": ("a.npy", "real/a.npy"),
        "folder": ("link", "real"),
        "parent": ("link/a.npy", "real/a.npy"),
        "new file": ("link/new.npy", "real/new.npy"),
        "around": ("real/../real/a.npy", "a.npy"),
        "twice": ("b.npy", "real/a.npy"),
    }[kind]
    with lock_outputs(tmp_path / one):
        said = refusal(take, tmp_path / other)
        assert f"{tmp_path / other} is being written by another run" in said
    assert not list(tmp_path.rglob("*.lock"))


def test_another_process_is_named_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch()
    (tmp_path / "b.npy").symlink_to("a.npy")
    process = hold(tmp_path / "b.npy")
    try:
        assert f"process {process.pid} on" in refusal(take, tmp_path / "a.npy")
    finally:
        process.kill()
        process.wait()
    take(tmp_path / "a.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]
