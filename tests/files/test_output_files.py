"""Output paths, replaced files, and the removal of temporary files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from datacomp_flyt.files.output_files import (
    atomic_write,
    check_save_path,
    create_temporary,
    remove_unfinished,
)
from tests.conftest import REPOSITORY, refusal

TEMPORARY = ".a.npy.0123456789abcdef.datacomp_flyt.tmp"


def write(path: Path, content: bytes = b"new") -> None:
    with atomic_write(path) as file:
        file.write(content)


@pytest.mark.parametrize("links", [1, 3])
@pytest.mark.parametrize("kind", ["relative", "absolute", "other folder"])
def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path, links: int, kind: str) -> None:
    folder = tmp_path / "far" if kind == "other folder" else tmp_path
    folder.mkdir(exist_ok=True)
    target = folder / "real"
    target.write_bytes(b"old")
    for number in range(links):
        link = tmp_path / f"link_{number}"
        link.symlink_to(target if kind == "absolute" else os.path.relpath(target, tmp_path))
        target = link
    assert check_save_path(link, "--out") == link
    write(link)
    assert link.is_symlink()
    assert (folder / "real").read_bytes() == b"new"
    assert not list(tmp_path.rglob(".*"))


def refused(path: Path | str, what: str) -> None:
    """Refuse by the check, before any work, and by the writer."""
    said = refusal(check_save_path, path, "--out")
    assert said.startswith(f"--out {path}")
    assert what in said
    assert what in refusal(write, Path(path))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("dangling", "is a link to"),
        ("loop", "cannot be written"),
        ("to a folder", "is a folder"),
        ("to a device", "is a device"),
        ("pipe", "a pipe"),
        ("device", "is a device"),
        ("long", "cannot be written"),
        ("folder", "is a folder"),
    ],
)
def test_places_that_are_refused(tmp_path: Path, kind: str, what: str) -> None:
    path = tmp_path / "out"
    if kind == "dangling":
        path.symlink_to(tmp_path / "gone")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "to a folder":
        path.symlink_to(tmp_path)
    elif kind == "to a device":
        path.symlink_to(os.devnull)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    else:
        path.mkdir()
    before = {name: os.lstat(tmp_path / name) for name in os.listdir(tmp_path)}
    refused(path, what)
    assert {name: os.lstat(tmp_path / name) for name in os.listdir(tmp_path)} == before
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["new/", "there/", "new//"])
def test_names_of_folders(tmp_path: Path, name: str) -> None:
    assert "is a folder" in refusal(check_save_path, f"{tmp_path}/{name}", "--out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_what_is_printed_to_is_no_output(tmp_path: Path, stream: str, to: str) -> None:
    program = (
        "import sys\nfrom datacomp_flyt.files.output_files import check_save_path\n"
        "from datacomp_flyt.errors import InputError\n"
        "try: check_save_path(sys.argv[1], '--out')\nexcept InputError: sys.exit(3)"
    )
    with (tmp_path / "log").open("wb") as log:
        ended = subprocess.run(
            [sys.executable, "-c", program, f"/dev/{stream}"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            **{stream: subprocess.PIPE if to == "pipe" else log},
            check=False,
        )
    assert ended.returncode == 3


@pytest.mark.parametrize("user", ["owner", "owner of the folder", "root", "another"])
def test_a_file_in_a_sticky_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    """Only these users may replace a file, whatever its permissions."""
    path = tmp_path / "a"
    path.touch()
    tmp_path.chmod(0o1777)
    if user == "owner of the folder" and os.geteuid() == 0:
        os.chown(path, 1234, -1)
    mine = os.stat(tmp_path).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: {"root": 0, "another": 4321}.get(user, mine))
    if user == "another":
        assert "is write-protected" in refusal(check_save_path, path, "--out")
        tmp_path.chmod(0o777)
    assert check_save_path(path, "--out") == path


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o644, 0o777, 0o666])
def test_permissions_of_what_is_replaced_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_new_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("length", [1, 90, 120, 200, 240, 255])
def test_long_names(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * length)
    check_save_path(path, "--out")
    write(path)
    handle, _ = create_temporary(path)
    os.close(handle)
    remove_unfinished(path)
    assert list(tmp_path.iterdir()) == [path]


LOOK_ALIKE = [
    ".a.npy.abcd1234",
    ".a.npy.tmpabcde",
    ".a.npy.swp",
    ".a.npy.lock",
    ".a.npy.datacomp_flyt.tmp",
    ".a.npy.0123456789abcdeg.datacomp_flyt.tmp",
    ".a.npy.0123456789abcdef.datacomp_flyt.tmp.bak",
    "a.npy.0123456789abcdef.datacomp_flyt.tmp",
]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_only_our_temporary_files_are_removed(tmp_path: Path, what: str) -> None:
    for name in (*LOOK_ALIKE, TEMPORARY, TEMPORARY.replace("a.npy", "b.npy")):
        (tmp_path / name).write_bytes(b"x")
    remove_unfinished(tmp_path / "a.npy" if what == "file" else tmp_path)
    others = [TEMPORARY.replace("a.npy", "b.npy")] if what == "file" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*LOOK_ALIKE, *others])


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_file_is_not_removed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "victim").write_bytes(b"x")
    path = tmp_path / TEMPORARY
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("victim" if kind == "link" else "gone"))
    remove_unfinished(tmp_path)
    assert os.path.lexists(path)
    assert (tmp_path / "victim").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a.npy", "a[b].npy", "*.npy", "ä.npy", "a\nb.npy", "x" * 200])
def test_what_another_process_writes_is_not_removed(tmp_path: Path, name: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from datacomp_flyt.files.output_files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new')\n    print('writing', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / name)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    (before,) = tmp_path.iterdir()
    for place in (tmp_path / name, tmp_path):
        remove_unfinished(place)
    assert list(tmp_path.iterdir()) == [before]
    if name == "a.npy":
        process.kill()
        process.communicate()
        remove_unfinished(tmp_path / name)
        assert not list(tmp_path.iterdir())
    else:
        process.communicate()
        assert (tmp_path / name).read_bytes() == b"new"


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    path = tmp_path / "out" / "a"
    check_save_path(path, "--out")

    def vanish() -> None:
        with atomic_write(path) as file:
            file.write(b"x")
            (temporary,) = path.parent.iterdir()
            temporary.unlink()
            path.parent.rmdir()

    assert f"{path} cannot be written" in refusal(vanish)
