"""The ends of commands: signals, too little memory, internal errors, ranks that do not start."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datacomp_flyt.errors import InputError
from datacomp_flyt.exits import INTERNAL_ERROR, Parser, running, socket_folder
from datacomp_flyt.files.open_file import readable
from datacomp_flyt.pool.subset import write_subset
from tests.cli.commands import POOL, STOPPED, marked, started
from tests.conftest import REPOSITORY, make_pool, refusal, sorted_uids, write_files
from tests.engines.contract import wait_until_ended


def temporary_files(folder: Path) -> list[str]:
    """List hidden files, as temporary files are."""
    return [path.name for path in folder.rglob(".*") if path.is_file()]


# --- signals


@pytest.mark.parametrize(
    ("kind", "to", "signum", "code"),
    [
        ("writing", os.kill, signal.SIGINT, 130),
        ("writing", os.kill, signal.SIGTERM, 143),
        ("writing", os.kill, signal.SIGHUP, 129),
        ("threads", os.kill, signal.SIGINT, 130),
        ("wrapped", os.kill, signal.SIGINT, 130),
        ("processes", os.killpg, signal.SIGINT, 130),
        ("processes", os.kill, signal.SIGTERM, 143),
        pytest.param("ray", os.killpg, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param("ray", os.kill, signal.SIGTERM, 143, marks=pytest.mark.slow),
        ("step", os.killpg, signal.SIGINT, 130),
        ("step", os.kill, signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_a_command_with_one_line(
    tmp_path: Path, kind: str, to: object, signum: signal.Signals, code: int
) -> None:
    """Nobody prints a traceback, no worker goes on, and no temporary file stays."""
    if kind == "ray":
        pytest.importorskip("ray")
    with started("-m", "tests.cli.interrupted", kind, str(tmp_path)) as process:
        pids = [pid for pid in marked(tmp_path, 2 if kind in ("processes", "ray") else 1) if pid]
        to(process.pid, signum)  # type: ignore[operator]
        said, errors = process.communicate(timeout=60)
        wait_until_ended(pids, 10)
    name = {130: "Ctrl-C", 143: "SIGTERM", 129: "SIGHUP"}[code]
    assert errors == f"interrupted: stopped by {name}: {STOPPED}\n"
    assert (process.returncode, said) == (code, "")
    assert temporary_files(tmp_path) == []
    assert not (tmp_path / "out.npy").exists()


def test_the_same_signal_twice_is_one(tmp_path: Path) -> None:
    """Both a terminal and torchrun send the signal of Ctrl-C to a process."""
    with started("-m", "tests.cli.interrupted", "writing", str(tmp_path)) as process:
        marked(tmp_path)
        for _ in range(3):
            os.kill(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert errors == f"interrupted: stopped by Ctrl-C: {STOPPED}\n"
    assert process.returncode == 130
    assert temporary_files(tmp_path) == []


def test_a_later_signal_ends_it_at_once(tmp_path: Path) -> None:
    with started("-m", "tests.cli.interrupted", "lingering", str(tmp_path)) as process:
        marked(tmp_path)
        os.kill(process.pid, signal.SIGINT)
        marked(tmp_path, 2)
        time.sleep(1.1)
        os.kill(process.pid, signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert errors == "interrupted: stopped at once\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    "words",
    [("-m", "datacomp_flyt.cli", "check", "s.npy"), ("-m", "baselines_plugin", "--help")],
)
def test_ctrl_c_while_packages_are_imported(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "fsspec.py").write_text(
        "import pathlib, signal, time\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid0').touch()\ntime.sleep(100)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    with started(*words, PYTHONPATH=path) as process:
        marked(tmp_path)
        os.kill(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert errors.endswith(f"stopped by Ctrl-C: {STOPPED}\n")
    assert len(errors.splitlines()) == 1
    assert process.returncode == 130


def test_handlers_are_as_before() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit), running("x"):
        raise InputError("wrong")
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_forked_child_is_silent() -> None:
    """The parent ends the workers of a data loader."""
    with running("x"):
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGINT)  # passed over
            os.kill(os.getpid(), signal.SIGTERM)  # ends it
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


# --- memory


def of_reader() -> InputError:
    """Readers of files wrap the error in their own."""
    try:
        with readable("a.parquet", "parquet", "download it again"):
            np.empty(1 << 62, np.uint8)
    except InputError as error:
        return error
    raise AssertionError


def of_numpy() -> MemoryError:
    try:
        np.empty(1 << 62, np.uint8)
    except MemoryError as error:
        return error
    raise AssertionError


LACKS = [
    MemoryError(),
    of_numpy(),
    pa.lib.ArrowMemoryError("malloc of size 68719476736 failed"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4398046511104"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 3 GiB free"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "),
    RuntimeError("can't start new thread"),
    ImportError("libarrow.so.2300: failed to map segment from shared object"),
    of_reader(),
]


@pytest.mark.parametrize("error", LACKS, ids=lambda error: f"{type(error).__name__}: {error}"[:40])
@pytest.mark.parametrize("flags", [{}, {"work_dir": None, "num_workers": 2}, {"batch_size": 8}])
def test_too_little_memory(
    capsys: pytest.CaptureFixture[str], error: Exception, flags: dict[str, object]
) -> None:
    def select() -> None:
        with running("select") as command:
            command.flags = flags
            raise error

    with pytest.raises(SystemExit) as ended:
        select()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    fault = "there is too little memory ("
    if "DataLoader worker" in str(error):
        fault = "a loader process was killed, often for want of memory (DataLoader worker"
    assert said.startswith(f"select: error: {fault}")
    assert len(said.splitlines()) == 1
    assert ("--work_dir" in said) == ("work_dir" in flags)
    assert ("--batch_size" in said) == ("batch_size" in flags)
    assert ("--num_workers" in said) == ("num_workers" in flags)


@pytest.mark.parametrize(
    "error", [InputError("f.npy says: out of memory"), InputError("a"), InputError("b")]
)
def test_what_a_file_says_of_memory_is_no_evidence(
    capsys: pytest.CaptureFixture[str], error: InputError
) -> None:
    with pytest.raises(SystemExit), running("select"):
        raise error
    assert capsys.readouterr().err == f"select: error: {error}\n"


LIMITED = """
import resource, sys
from baselines_plugin import run_if_ours
from baselines_plugin.__main__ import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + (int(sys.argv.pop(1)) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""


@pytest.fixture(scope="module")
def larger_pool(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_files(tmp_path_factory.mktemp("larger"), make_pool(50_000).metadata, 3)


@pytest.mark.parametrize("megabytes", [0, 1, 2, 3, 4, 6, 200])
def test_a_selection_in_little_memory(tmp_path: Path, larger_pool: str, megabytes: int) -> None:
    """Memory may run out anywhere. (Threads of C++ libraries then abort the process.)"""
    save_path = tmp_path / "s.npy"
    flags = ("--name", "top_fraction", "--column", "clip_l14_similarity_score", "--fraction", "0.5")
    places = ("--metadata_dir", larger_pool, "--save_path", str(save_path), "--num_workers", "1")
    with started("-c", LIMITED, str(megabytes), *flags, *places) as process:
        errors = process.communicate(timeout=60)[1]
    if process.returncode == 0:
        assert megabytes
        assert save_path.exists()
        return
    assert (process.returncode, save_path.exists()) == (2, False)
    assert "Traceback" not in errors
    said = errors.splitlines()[-1]
    assert said.startswith("python -m baselines_plugin: error: there is too little memory (")
    assert said.endswith("or add --work_dir FOLDER, which sorts the pool in files")


# --- mistakes and the machine


@pytest.mark.parametrize(
    "error",
    [KeyError("uid"), AssertionError(), TypeError("a"), IndexError(3), RecursionError("deep"),
     RuntimeError("odd")],
    ids=repr,
)  # fmt: skip
def test_a_mistake_is_neither_an_answer_nor_wrong_input(
    capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    with pytest.raises(SystemExit) as ended, running("datacomp-flyt check"):
        raise error
    assert ended.value.code == INTERNAL_ERROR == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "datacomp-flyt check: an internal error: please report these lines"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1].startswith(type(error).__name__)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE, errno.EROFS, errno.EDQUOT]
)
def test_what_the_machine_refuses(capsys: pytest.CaptureFixture[str], number: int) -> None:
    with pytest.raises(SystemExit) as ended, running("x"):
        raise OSError(number, os.strerror(number), "some/file")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"x: error: some/file: {os.strerror(number)}\n"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("safetensors", 2),
        ("pandas.core", 2),
        ("datacomp_flyt.absent", 70),
        ("baselines_plugin", 70),
    ],
)
def test_a_package_that_is_not_installed(
    capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    with pytest.raises(SystemExit) as ended, running("x"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert ended.value.code == code
    if code == 2:
        assert capsys.readouterr().err.startswith("x: error: ")


@pytest.mark.parametrize("code", [0, 1, 2, 3, None, "text"])
def test_exit_codes_of_commands_are_theirs(code: object) -> None:
    with pytest.raises(SystemExit) as ended, running("outer"), running("inner"):
        raise SystemExit(code)
    assert ended.value.code == code


# --- temporary files


@pytest.mark.parametrize(("length", "kept"), [(10, True), (60, True), (80, False), (200, False)])
def test_a_folder_for_sockets(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    kept: bool,
) -> None:
    folder = Path(f"/tmp/{'x' * (length - 5)}")
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    try:
        assert socket_folder(32) == (str(folder) if kept else "/tmp")
        assert "TMPDIR" in refusal(socket_folder, 100)
    finally:
        folder.rmdir()


@pytest.mark.parametrize("place", ["long", "absent", "file", "read_only", "relative", "umlaut"])
def test_any_tmpdir(tmp_path: Path, place: str) -> None:
    """A step runs, for which multiprocessing listens at a socket."""
    folder = {"long": tmp_path / ("x" * 200), "umlaut": tmp_path / ("é" * 90)}.get(
        place, tmp_path / place
    )
    if place == "file":
        folder.touch()
    elif place != "absent":
        folder.mkdir(mode=0o500 if place == "read_only" else 0o700)
    given = os.path.relpath(folder) if place == "relative" else str(folder)
    script = (
        "import sys\nfrom pathlib import Path\nfrom datacomp_flyt import steps\n"
        "from datacomp_flyt.exits import running\nsteps.PRELOADED = ()\n"
        "step = steps.Step('v', 'V', ('datacomp-flyt', '--version'))\n"
        "with running('x'):\n    steps.run_steps([step], Path(sys.argv[1]), quiet=True)\n"
    )
    with started("-c", script, str(tmp_path / "run"), TMPDIR=given) as process:
        said = process.communicate(timeout=100)
    assert (process.returncode, *said) == (0, "", "")


# --- what torchrun says


@pytest.mark.parametrize(
    "wrong",
    [
        {"MASTER_ADDR": None},
        {"MASTER_PORT": None},
        {"MASTER_ADDR": None, "MASTER_PORT": None},
        {"MASTER_ADDR": ""},
        {"MASTER_PORT": "http"},
        {"MASTER_PORT": "700000"},
        {"RANK": "x"},
        {"RANK": "-1"},
        {"RANK": "2"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "two"},
    ],
    ids=str,
)
def test_what_torchrun_says_is_checked(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str | None]
) -> None:
    from datacomp_flyt.distributed.torchrun_ranks import torchrun_environment

    right = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in {**right, **wrong}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    said = refusal(torchrun_environment)
    assert "start with torchrun" in said
    names = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name in wrong]
    assert all(name in said for name in names)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_does_not_come(rank: int) -> None:
    """Neither the listening rank nor the calling rank waits forever."""
    pytest.importorskip("torch")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "from datetime import timedelta\n"
        "from datacomp_flyt.distributed import torchrun_ranks as ranks\n"
        "from datacomp_flyt.exits import running\nranks._LIMIT = timedelta(seconds=2)\n"
        "with running('x'):\n    ranks.ranks_of_torchrun()\n"
    )
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with started("-c", script, MASTER_PORT=str(port), **environment) as process:
        errors = process.communicate(timeout=100)[1]
    assert process.returncode == 2
    said = errors.splitlines()[-1]
    assert said.startswith(f"x: error: rank {rank} of 2 ")
    assert "rank 1, which did not join" in said if rank == 0 else f"MASTER_PORT {port}" in said


def test_check_answers_with_0_1_and_2(tmp_path: Path) -> None:
    """These errors stand for missing ranks, and no other error does."""
    uids = sorted_uids(POOL.uids)
    write_subset(tmp_path / "valid.npy", uids)
    np.save(tmp_path / "unsorted.npy", uids[::-1])
    for name, code in (("valid.npy", 0), ("unsorted.npy", 1), ("absent.npy", 2)):
        with started("-m", "datacomp_flyt.cli", "check", str(tmp_path / name)) as process:
            process.communicate(timeout=60)
        assert process.returncode == code


# --- the parser


def test_a_program_shows_the_first_line_of_its_docstring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = types.SimpleNamespace(name="benchmarks.report.__main__")
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
    parser = Parser(description="One line.\n\nMore lines.")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m benchmarks.report [-h]")
    assert "One line." in shown
    assert "More" not in shown
