"""`datacomp-flyt score` over the demo pool: every scorer, both engines, kills, a corrupt file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("webdataset")

from datacomp_flyt.cli import main
from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.demo import POOL
from datacomp_flyt.scorers import save_glu_head
from datacomp_flyt.scorers.linear_classifier.classifier_file import LinearModel, save_classifier
from tests.cli.scoring import METADATA, NPZ, files_in, score
from tests.conftest import REPOSITORY
from tests.scorers.base.made import made_head
from tests.scorers.hype.made_hype import Sizes, made_reference, made_state

TARS = ("--shards_dir", str(POOL / "shards"), "--batch_size", "50")
STEMS = sorted(path.stem for path in METADATA.glob("*.parquet"))
SLOW = ("neg_clip_loss", *NPZ, "--num_partitions", "1500", "--num_workers", "2")
Flags = tuple[str, ...]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Flags]:
    """Each scorer with the files that it wants; random weights where the real ones are released."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    save_classifier(LinearModel(rng.normal(size=32), 0.1, ("b32_img",)), folder / "c.safetensors")
    save_glu_head(made_head(64, 16), folder / "head.safetensors")
    clip = load_clip_model("flyt-tiny", "random", "reference").model.state_dict()
    torch.save(clip, folder / "clip.pt")
    head = made_head(2 * 64, 8, arrays=None)
    state = {f"clip_model.{name}": value for name, value in clip.items()}
    state |= {name: torch.from_numpy(array) for name, array in head.tensors("glu_model.").items()}
    torch.save(state, folder / "flyt.pt")
    sizes = Sizes(context=77)
    torch.save(made_state(sizes), folder / "hype.pt")
    torch.save(made_reference(sizes.out), folder / "reference.pt")
    targets = ("--targets", str(METADATA))
    return {
        "metadata": ("clip_score", *NPZ),
        "npz": ("clip_score", *NPZ, "--source", "npz", "--arch", "l14"),
        "neg_clip_loss": ("neg_clip_loss", *NPZ, "--batch_size", "40"),
        "norm_sim": ("norm_sim", *NPZ, *targets),
        "norm_sim_2": ("norm_sim", *NPZ, *targets, "--p", "2"),
        "vas": ("vas", *NPZ),
        "norm_sim_d": ("norm_sim_d", *NPZ, "--num_rounds", "30"),
        "linear_classifier": (
            *("linear_classifier", *NPZ, "--classifier"),
            str(folder / "c.safetensors"),
        ),
        "e_flyt": ("e_flyt", *NPZ, "--scoring_model", str(folder / "head.safetensors")),
        "e_flyt_images": (
            *("e_flyt", *TARS, "--scoring_model", str(folder / "flyt.pt")),
            *("--model", "flyt-tiny"),
        ),
        "dfn": (*("dfn", *TARS, "--model", "flyt-tiny", "--checkpoint"), str(folder / "clip.pt")),
        "hype": (
            *("hype", *TARS, "--checkpoint", str(folder / "hype.pt")),
            *("--reference", str(folder / "reference.pt")),
        ),
        "m_flyt": ("m_flyt", *NPZ, "--scoring_model", "paper", "--allow_missing_scores"),
    }


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def start(scores_dir: Path, scorer: str, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "datacomp_flyt.cli", "score", "--scorer", scorer]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [*command, "--scores_dir", str(scores_dir), *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def children(pid: int) -> list[int]:
    """Worker processes of a driver."""
    tasks = Path(f"/proc/{pid}/task")
    found = []
    for task in tasks.iterdir() if tasks.exists() else ():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


NAMES = ("metadata", "npz", "neg_clip_loss", "e_flyt", "dfn", "m_flyt")
LIKE_THEM = (
    "norm_sim",
    "norm_sim_2",
    "norm_sim_d",
    "vas",
    "linear_classifier",
    "e_flyt_images",
    "hype",
)
SLOW_NAMES = [pytest.param(name, marks=pytest.mark.slow) for name in LIKE_THEM]


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", [*NAMES, *SLOW_NAMES])
def test_both_engines_make_the_same_bytes(
    name: str, commands: dict[str, Flags], tmp_path: Path
) -> None:
    scorer, *flags = commands[name]
    assert score(tmp_path / "one", scorer, *flags, "--num_workers", "1") == 0
    assert score(tmp_path / "two", scorer, *flags, "--num_workers", "2") == 0
    assert score(tmp_path / "ray", scorer, *flags, "--num_workers", "2", "--engine", "ray") == 0
    made = files_in(tmp_path / "one")
    assert len(made) == 5, "four shards and the settings"
    assert made == files_in(tmp_path / "two") == files_in(tmp_path / "ray")
    tables = [pq.read_table(tmp_path / "one" / file) for file in made if "parquet" in file]
    assert sum(table.num_rows for table in tables) == 420
    columns = [name for name in tables[0].column_names if name != "uid"]
    values = np.concatenate([np.stack([t[c].to_numpy() for c in columns]) for t in tables], 1)
    assert np.isfinite(values).all()
    assert (values.std(axis=1) > 0).all()


def test_a_corrupt_file_among_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(METADATA, pool)
    npz = pool / f"{STEMS[2]}.npz"
    whole = npz.read_bytes()
    npz.write_bytes(whole[: len(whole) // 2])
    flags = ("--metadata_dir", str(pool), "--num_workers", "2", "--retries", "1")
    assert score(tmp_path / "scores", "neg_clip_loss", *flags) == 1
    out, said = capfd.readouterr()
    assert "shards scored, 1 failed" in out
    assert f"shard {STEMS[2]} failed: {npz} cannot be read as npz" in said
    assert (
        "1 shard failed and the others are done; correct what the lines above report and run"
        in said
    )
    there = {path.stem for path in (tmp_path / "scores/negCLIPLoss").glob("*.parquet")}
    assert there == {*STEMS} - {STEMS[2]}
    npz.write_bytes(whole)
    assert score(tmp_path / "scores", "neg_clip_loss", *flags) == 0
    assert score(tmp_path / "anew", "neg_clip_loss", *flags) == 0
    assert files_in(tmp_path / "scores") == files_in(tmp_path / "anew")


def interrupted(
    tmp_path: Path, kill: Callable[[subprocess.Popen[bytes], random.Random], None], flags: Flags
) -> None:
    """Whatever is killed and whenever, the command given again makes the undisturbed bytes."""
    began = time.monotonic()
    assert start(tmp_path / "undisturbed", *flags).wait() == 0
    duration = time.monotonic() - began
    whole = files_in(tmp_path / "undisturbed")
    rng = random.Random(0)
    for number in range(3):
        scores_dir = tmp_path / str(number)
        driver = start(scores_dir, *flags)
        time.sleep(rng.uniform(0.3, 0.95) * duration)
        kill(driver, rng)
        driver.wait()
        left = {name for name in files_in(scores_dir) if not name.endswith("/.lock")}
        assert left <= {*whole}, "nothing unfinished under a final name"
        assert start(scores_dir, *flags).wait() == 0
        assert files_in(scores_dir) == whole


@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
def test_a_killed_worker(tmp_path: Path) -> None:
    codes = []

    def kill(driver: subprocess.Popen[bytes], rng: random.Random) -> None:
        workers = children(driver.pid)
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        codes.append(driver.wait())

    interrupted(tmp_path, kill, SLOW)
    assert codes == [0, 0, 0], "the shard went to another worker"


def test_a_killed_driver(tmp_path: Path) -> None:
    interrupted(tmp_path, lambda driver, _: driver.kill(), SLOW)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a node's processes in /proc")
def test_a_lost_node_of_a_cluster(tmp_path: Path) -> None:
    from tests.engines.two_nodes import two_nodes

    assert score(tmp_path / "undisturbed", *SLOW) == 0
    whole = files_in(tmp_path / "undisturbed")
    with two_nodes() as nodes:
        flags = ("--engine", "ray", "--ray_address", nodes.address)
        driver = start(tmp_path / "scores", *SLOW[:-2], *flags)
        while not list((tmp_path / "scores").rglob("*.parquet")):
            assert driver.poll() is None
            time.sleep(0.05)
        nodes.kill_second_node()
        assert driver.wait(timeout=120) == 0
    assert files_in(tmp_path / "scores") == whole


def test_a_corrupt_file_of_a_whole_pool_score(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(METADATA, pool)
    (pool / f"{STEMS[1]}.npz").write_bytes(b"no zip")
    flags = ("--metadata_dir", str(pool), "--num_workers", "2", "--retries", "0")
    assert score(tmp_path / "scores", "vas", *flags) == 1
    said = capfd.readouterr().err
    assert f"shard {STEMS[1]} failed" in said
    assert "nothing is scored before the whole pool is known" in said


def test_files_of_two_models(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(METADATA, pool)
    wide = {name: np.ones((105, 7), np.float16) for name in ("b32_img", "b32_txt")}
    np.savez(pool / f"{STEMS[2]}.npz", **wide)
    assert score(tmp_path / "scores", "neg_clip_loss", "--metadata_dir", str(pool)) == 2
    said = capfd.readouterr().err
    assert f"{STEMS[2]}.npz has b32_img, b32_txt of width 7, 7 and" in said
    assert "a pool's embeddings are of one model" in said


def test_another_pool_with_the_same_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(METADATA, tmp_path / "pool")
    assert score(tmp_path / "scores", "clip_score", *NPZ) == 0
    other = ("--metadata_dir", str(tmp_path / "pool"))
    assert score(tmp_path / "scores", "clip_score", *other) == 2
    assert "was made with pool" in capfd.readouterr().err


def test_m_flyt_of_more_columns_than_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mix = ("m_flyt", *NPZ, "--scoring_model", "paper", "--allow_missing_scores")
    assert score(tmp_path, *mix) == 0
    assert score(tmp_path, *mix) == 0
    assert score(tmp_path, "clip_score", *NPZ, "--column", "FLYT") == 0
    assert score(tmp_path, *mix) == 2
    assert "was made with tables" in capfd.readouterr().err


def test_relative_paths(
    commands: dict[str, Flags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "targets.npy", np.eye(3, 32, dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    assert score(Path("scores"), "norm_sim", *NPZ, "--targets", "targets.npy") == 0


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("neg_clip_loss",), "--scorer neg_clip_loss wants --metadata_dir"),
        (("neg_clip_loss", *NPZ, "--temperature", "0"), "--temperature is 0.0, wanted a positive"),
        (("neg_clip_loss", *NPZ, "--column", "a/b"), "--column 'a/b' is no name of a score"),
        (("neg_clip_loss", *NPZ, "--column", "uid"), "--column 'uid' is no name of a score"),
        (("neg_clip_loss", *NPZ, "--batch_size", "0"), "--batch_size is 0, wanted 1 or more"),
        (("norm_sim", *NPZ), "--targets is missing"),
        (("norm_sim", *NPZ, "--targets", "x", "--p", "0.5"), "--p is 0.5, wanted 1 or more"),
        (("norm_sim_d", *NPZ, "--fraction", "2"), "--fraction is 2.0, wanted more than 0"),
        (("e_flyt", *NPZ), "wants --scoring_model"),
        (("m_flyt", "--scoring_model", "paper"), "--metadata_dir is missing"),
        (("m_flyt", *NPZ, "--scoring_model", "paper"), "no column 'DFN-Base'"),
        (("clip_score", *NPZ, "--arch", "h14"), "--arch h14: the metadata has scores of b32 and"),
        (("clip_score", *NPZ, "--ray_address", "auto"), "--ray_address is for --engine ray"),
        (("clip_score", *NPZ, "--num_workers", "0"), "--num_workers is 0, wanted 1 or more"),
        (("clip_score", *NPZ, "--retries", "-1"), "--retries is -1, wanted 0 or more"),
        (("clip_score", "--metadata_dir", "none"), "--metadata_dir none is not a folder"),
    ],
)
def test_one_sentence_and_exit_code_2(
    flags: Flags, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "x.parquet").write_bytes((METADATA / f"{STEMS[0]}.parquet").read_bytes())
    assert score(tmp_path / "scores", *flags) == 2
    error = capfd.readouterr().err
    assert error.startswith("datacomp-flyt score: error: ")
    assert len(error.splitlines()) == 1
    assert message in error
    assert not list((tmp_path / "scores").glob("*/*.parquet"))


def test_scores_into_the_cloud_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert score("s3://bucket/scores", "clip_score", *NPZ) == 2  # type: ignore[arg-type]
    assert "is a cloud path" in capfd.readouterr().err


def test_help_lists_the_scorers_own_flags(capfd: pytest.CaptureFixture[str]) -> None:
    for scorer, flag in (("norm_sim", "--targets"), ("dfn", "--checkpoint"), ("vas", "--arch")):
        with pytest.raises(SystemExit):
            main(["score", "--scorer", scorer, "--help"])
        assert flag in capfd.readouterr().out
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    said = capfd.readouterr().out
    assert "--targets" not in said
    assert "neg_clip_loss" in said
