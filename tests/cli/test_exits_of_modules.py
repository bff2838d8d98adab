"""The ends of `python -m` commands, with broken packages and in odd environments."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.datacomp import environments
from datacomp_flyt.datacomp.environments import COMMANDS, HALF, problems
from datacomp_flyt.exits import running
from datacomp_flyt.pool.manifest import read_manifest
from datacomp_flyt.pool.subset import read_subset
from tests.cli.commands import ENVIRONMENT, POOL, STOPPED, marked, started
from tests.conftest import REPOSITORY, refusal, sorted_uids

MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in (REPOSITORY / "datacomp_flyt").rglob("*.py")
    if '\nif __name__ == "__main__"' in path.read_text()
)


def ended(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    settings = {"env": ENVIRONMENT, "capture_output": True, "text": True, "check": False, **options}
    return subprocess.run([sys.executable, *words], **settings)  # type: ignore[call-overload, no-any-return]


# --- modules as commands


def test_every_module_with_a_command_is_here() -> None:
    assert "datacomp_flyt.flyt.train" in MODULES
    for module in MODULES:
        lines = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text().splitlines()
        place = next(n for n, line in enumerate(lines) if line.startswith("if __name__"))
        assert lines[place + 1] == f'    run_main("{module}")'
        imports = [line for line in lines[:place] if line.startswith(("import ", "from "))]
        assert [line.split()[1] for line in imports] == ["__future__", "datacomp_flyt.exits"]


# Of the excluded modules, one imports little and one is in a package that imports NumPy.
@pytest.mark.parametrize(
    "module", [m for m in MODULES if not m.endswith((".delete_embeddings", ".hype.reference"))]
)
def test_ctrl_c_while_a_module_imports(tmp_path: Path, module: str) -> None:
    for name in ("numpy", "torch", "PIL", "fsspec"):
        (tmp_path / f"{name}.py").write_text(
            "import pathlib, time\n"
            f"pathlib.Path({str(tmp_path)!r}, 'pid0').touch()\ntime.sleep(100)\n"
        )
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    with started("-m", module, "--help", PYTHONPATH=path) as process:
        marked(tmp_path)
        os.kill(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (130, f"{module}: stopped by Ctrl-C: {STOPPED}\n")


@pytest.mark.parametrize(
    "word", ["--x\x1b[31m", "--a\nb", "--\udcff", "--\u202e", "--\x9b1m", "-\r"]
)
def test_words_given_to_a_module(word: str) -> None:
    """A shell may insert names of files."""
    said = ended("-m", "datacomp_flyt.self_filtering.delete_embeddings", "round", word)
    assert said.returncode == 2
    assert all(line.isprintable() for line in said.stderr.rstrip("\n").split("\n"))


# --- packages that cannot be imported

RAISED = (
    "OSError('libcudart.so.12: cannot open shared object file')",
    "RuntimeError('module compiled against API version 0x10')",
    "ImportError('numpy.core.multiarray failed to import')",
    "ImportError('cannot import name', name='broken_one.inner')",
    "AttributeError('module numpy has no attribute float_')",
    "TypeError('Descriptors cannot be created directly.')",
    "SystemError('initialization failed')",
    "KeyError('HOME')",
)


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("inside", [False, True])
def test_a_package_that_does_not_import(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: str,
    inside: bool,
) -> None:
    """The package may raise any error, in any of its modules."""
    folder = tmp_path / "broken_one"
    folder.mkdir()
    (folder / "inner.py").write_text(f"raise {raised}\n")
    (folder / "__init__.py").write_text(
        "from broken_one import inner\n" if inside else f"raise {raised}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as end, running("x"):
        import broken_one  # noqa: F401
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("x: error: broken_one  cannot be imported here (")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["jinja2/__init__.py"], ""),
        (["jinja2.py"], ""),
        (["jinja2/__init__.py", "jinja2-3.1.0.dist-info/METADATA"], "3.1.0"),
        (["jinja2-3.1.0.dist-info/METADATA"], HALF),
        (["jinja2-3.1.0.dist-info/METADATA", "jinja2/__pycache__/x.pyc"], HALF),
        (["jinja2/__pycache__/x.pyc"], None),
        (["jinja2/py.typed"], None),
        ([], None),
    ],
    ids=str,
)
def test_half_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], found: str | None
) -> None:
    """pip may list a package without a module, and a removed package may leave a folder."""
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Metadata-Version: 2.1\nName: jinja2\nVersion: 3.1.0\n" * ("META" in file))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    versions = environments.versions_here()
    assert versions.get("jinja2") == found
    report = next(command for command in COMMANDS if command.name == "datacomp-flyt report")
    reasons = "; ".join(problems(report, versions, lambda extra: "pip install it"))
    assert ("pip install --force-reinstall jinja2" in reasons) == (found == HALF)
    # other modules are missing too, unless an earlier test of this process imported them
    missing = re.search(r"([^;]*) not installed: pip install it", reasons)
    assert ("jinja2" in missing[1] if missing else False) == (found is None)


# --- surroundings


@pytest.mark.parametrize("kilobytes", [40_000, 60_000, 100_000, 150_000, 250_000])
def test_too_little_memory_to_load_numpy(tmp_path: Path, kilobytes: int) -> None:
    """OpenBLAS would end the process with exit code 1, which `check` uses for "not valid"."""
    np.save(tmp_path / "s.npy", sorted_uids(POOL.uids))
    said = subprocess.run(
        f"ulimit -v {kilobytes}; exec {sys.executable} -m datacomp_flyt.cli check s.npy",
        shell=True,
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 2
    assert "there is too little memory (" in said.stderr
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "datacomp_flyt.cli", "check", "s.npy"),
        ("-m", "datacomp_flyt.cli", "manifest", "m", "--save_path", "m.json"),
        ("-m", "datacomp_flyt.cli", "manifest", "m", "--check", "m.json"),
        ("-m", "datacomp_flyt.cli", "install", "."),
        ("-m", "baselines_plugin", "--name", "sum", "--score_columns", "a", "--sampling", "no_cap",
         "--num_samples", "9", "--metadata_dir", "m", "--save_path", "s.npy"),
        ("-m", "datacomp_flyt.self_filtering.next_subset", "--metadata_dir", "m", "--draws", "9",
         "--round", "1", "--out", "o"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_folder_that_was_removed(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "gone").mkdir()
    script = 'cd gone; rmdir ../gone; exec "$@"'
    said = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, *words],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 2
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EFBIG, errno.ENFILE])
@pytest.mark.parametrize("name", [None, "some/file"])
def test_limits_of_a_process(
    capsys: pytest.CaptureFixture[str], number: int, name: str | None
) -> None:
    with pytest.raises(SystemExit) as end, running("x"):
        raise OSError(number, os.strerror(number), name)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert ("ulimit -n" in said) == (number == errno.EMFILE and name is None)


@pytest.mark.parametrize("reader", [read_manifest, read_subset])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_file_that_is_none_is_not_waited_for(tmp_path: Path, reader: object, kind: str) -> None:
    path = tmp_path / "f"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    said = refusal(reader, Path("/dev/zero") if kind == "device" else path)  # type: ignore[arg-type]
    assert "it is not a regular file" in said


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "[train]"), ("open_clip.tokenizer", "[train]"), ("pandas", "[train]"),
     ("jinja2", "[report]"), ("ray", "[ray]"), ("numpy", "")],
)  # fmt: skip
def test_the_command_installs_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, module.partition(".")[0], raising=False)
    with pytest.raises(SystemExit), running("x"):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert capsys.readouterr().err.rstrip("\n'").endswith(f"{REPOSITORY}{extra}")
