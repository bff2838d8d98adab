"""`datacomp-flyt train_clip -- SCRIPT`: scripts run as Python itself would run them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("open_clip")

from tests.open_clip_hook.running import (
    HEAD,
    HERE,
    INSTALLED,
    OLDEST,
    SHARDS,
    SHRUNK_DATACOMP,
    STAND_IN,
    TRAIN_CLIP,
    environment,
    pool_concepts,
    python,
    write_repeats,
)

VERSIONS = pytest.mark.parametrize("open_clip", [INSTALLED, OLDEST, HEAD])
# prints how the script was started, and ends with an exit code of its own
REPORTING = """
import json, sys
import beside
import training.main, training.distributed, training.data
import open_clip
print(json.dumps({
    "name": __name__, "file": __file__, "argv": sys.argv, "path": sys.path[0],
    "beside": beside.__file__, "reader": training.data.tarfile_to_samples_nothrow.__name__,
    "main": __name__ in sys.modules and hasattr(training.main, "main"),
}))
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    return write_repeats(tmp_path / "subset.npy", dict.fromkeys(pool_concepts(), 1))


def train_clip(subset: Path, *words: str | Path) -> list[str]:
    return [*map(str, (*TRAIN_CLIP, "--subset", subset, "--", *words))]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def open_clip_flags(logs: Path) -> list[str]:
    """Return the trainer's own flags for one step on the demo pool."""
    flags = {
        "--train-data": f"{SHARDS}/{{00000000..00000003}}.tar",
        "--dataset-type": "webdataset",
        "--train-num-samples": "16",
        "--batch-size": "16",
        "--epochs": "1",
        "--workers": "1",
        "--model": "hook-tiny",
        "--precision": "fp32",
        "--logs": str(logs),
        "--name": "one",
    }
    return [word for pair in flags.items() for word in pair]


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """Return a folder for the path whose `sitecustomize` registers hook-tiny with open_clip."""
    folder = tmp_path / "site"
    folder.mkdir()
    lines = (
        "import open_clip",
        f"open_clip.add_model_config({str(HERE / 'model_configs')!r})",
    )
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return str(folder)


@VERSIONS
def test_a_script_runs_as_python_would_run_it(open_clip: str, subset: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.py").touch()
    script = tmp_path / "reporting.py"
    script.write_text(REPORTING)
    env = environment(open_clip)
    words = ["reporting.py", "--", "-x", "a b", "7"]
    ended = python(*train_clip(subset, *words), env=env, cwd=tmp_path, code=7)
    report = json.loads(last_line(ended.stdout))
    assert report["name"] == "__main__"
    assert report["argv"] == words
    assert Path(tmp_path, report["file"]) == script
    assert report["path"] == str(tmp_path)
    assert Path(report["beside"]) == tmp_path / "beside.py"
    assert report["reader"] == "_refuse_to_read"  # `training` is the hooked trainer
    assert report["main"]


def assert_refused(message: str, words: list[str | Path], subset: Path) -> None:
    ended = python(*train_clip(subset, *words), env=environment("installed"), code=2)
    assert last_line(ended.stderr).startswith("datacomp-flyt train_clip: error: ")
    assert message in last_line(ended.stderr)


def test_a_script_that_does_not_train_is_refused(subset: Path, tmp_path: Path) -> None:
    idle = tmp_path / "idle.py"
    idle.write_text("print('nothing to train')")
    assert_refused("idle.py ended without training", [idle], subset)


@pytest.mark.slow
def test_missing_scripts_and_modules_are_refused(subset: Path, tmp_path: Path) -> None:
    assert_refused("absent.py is not a file", [tmp_path / "absent.py"], subset)
    assert_refused("there is no module no_such.main", ["-m", "no_such.main"], subset)
    assert_refused("-m needs a module", ["-m"], subset)


@pytest.mark.slow
@VERSIONS
@pytest.mark.parametrize("words", ["new name", "old name", "path"])
def test_the_trainer_itself_can_be_the_script(
    open_clip: str, words: str, subset: Path, tmp_path: Path, tiny_model: str
) -> None:
    env = environment(open_clip)
    env["PYTHONPATH"] += os.pathsep + tiny_model
    find = "from datacomp_flyt.open_clip_hook.trainer import find_trainer; "
    find += "print(find_trainer().main.__file__)"
    script = {
        "new name": ["-m", "open_clip_train.main"],
        "old name": ["-m", "training.main"],
    }.get(words) or [last_line(python("-c", find, env=env).stdout)]
    flags = open_clip_flags(tmp_path / "logs")
    python(*train_clip(subset, *script, *flags), env=env, cwd=tmp_path)
    assert (tmp_path / "logs" / "one" / "checkpoints" / "epoch_1.pt").exists()

    # the hook was installed: a subset of another pool is refused
    write_repeats(subset, {"0" * 32: 1})
    ended = python(*train_clip(subset, *script, *flags[:-1], "two"), env=env, cwd=tmp_path, code=2)
    assert "train_clip: error: --subset" in ended.stderr  # other packages may log more after it
    assert "has none of the examples of" in ended.stderr


@pytest.mark.slow
@VERSIONS
def test_two_ranks_train_under_torchrun(open_clip: str, subset: Path, tmp_path: Path) -> None:
    env = environment(open_clip, DATACOMP_DIR=os.environ.get("DATACOMP_DIR") or STAND_IN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--scale", "small", "--data_dir", SHARDS, "--output_dir", tmp_path / "out"]
    words += ["--precision", "fp32", "--workers", "1", "--num_checkpoints", "2"]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = train_clip(subset, SHRUNK_DATACOMP, *map(str, words))
    command.insert(3, "--distinct_in_batch")
    ended = python(*map(str, torchrun), *command, env=env)
    assert (tmp_path / "out" / "small_scale" / "checkpoints" / "epoch_latest.pt").exists()
    # rank 0 logs for both, once per epoch
    assert ended.stderr.count("distinct_in_batch: ") == 2


@pytest.mark.slow
def test_the_cluster_script_trains_two_ranks(subset: Path, tmp_path: Path) -> None:
    """Run docs/slurm_train_clip.sh with a stand-in for Slurm: srun starts both tasks here."""
    repository = HERE.parents[1]
    text = (repository / "docs" / "slurm_train_clip.sh").read_text()
    for name, value in (
        ("DATA_PATH", SHARDS),
        ("SUBSET", subset),
        ("OUTPUT_DIR", tmp_path / "out"),
        ("EXP_NAME", "slurm"),
        ("NUM_CHECKPOINTS", 2),
        ("PRECISION", "fp32"),
        ("TRAIN_PY", SHRUNK_DATACOMP),
    ):
        lines = [line for line in text.split("\n") if line.startswith(f"{name}=")]
        assert len(lines) == 1, name
        text = text.replace(lines[0], f'{name}="{value}"')
    text = text.replace("--report_to_wandb", "--workers 1").replace("python -m", "$PYTHON -m")
    (tmp_path / "job.sh").write_text(text)
    commands = tmp_path / "bin"
    commands.mkdir()
    srun = (
        '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\n'
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & other=$!\n'
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $other\n'
    )
    for name, script in (("srun", srun), ("scontrol", "#!/bin/bash\necho 127.0.0.1\n")):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    env = environment(
        "installed",
        DATACOMP_DIR=os.environ.get("DATACOMP_DIR") or STAND_IN,
        PATH=f"{commands}{os.pathsep}{os.environ['PATH']}",
        PYTHON=sys.executable,
        SLURM_JOB_NODELIST="here",
        SLURM_NTASKS="2",
        SLURM_JOB_ID="7",
        SLURM_CPUS_PER_TASK="1",
    )
    command = ["bash", str(tmp_path / "job.sh")]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2_000:] + ended.stderr[-6_000:]
    assert (tmp_path / "out" / "slurm" / "checkpoints" / "epoch_latest.pt").exists()
    assert "World size is 2" in ended.stdout or "trained small" in ended.stdout
