"""The whole loop on a tiny pool with open_clip's trainer; a killed run ends the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip", reason="the train extra is not installed")
from datacomp_flyt.cli import main
from datacomp_flyt.demo.noisy_pool import MODEL, NOISE, make_pairs, write_labelled, write_pool
from tests.conftest import REPOSITORY

PAIRS, SAMPLES = 200, 256
TRAINER = (
    "-m", "open_clip_train.main", "--model", MODEL, "--dataset-type", "webdataset",
    "--dataset-resampled", "--batch-size", "32", "--epochs", "2", "--warmup", "2", "--lr", "3e-3",
    "--workers", "2", "--precision", "fp32", "--seed", "3",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a pool with a picture that cannot be decoded, and return its folder."""
    write_pool(tmp_path, make_pairs(PAIRS, 0.4, 0), "loop")
    path = tmp_path / "shards" / "00000000.tar"
    with tarfile.open(path) as tar:
        picture = next(member for member in tar if not member.name.endswith((".txt", ".json")))
    with path.open("r+b") as file:
        file.seek(picture.offset_data)
        file.write(bytes(picture.size))
    return tmp_path


def words(out: str, *flags: str) -> list[str]:
    """Return the words of the command line."""
    budget = ("--samples_per_round", str(SAMPLES))
    return ["self_filter", "--shards_dir", "shards", "--out", out, *budget, *flags, "--", *TRAINER]


def start(
    place: Path, out: str, *flags: str, launcher: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Start `datacomp-flyt self_filter` in the pool's folder."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "datacomp_flyt.cli", *words(out, *flags)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": f"{place}:{REPOSITORY}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    try:
        _, said = process.communicate(timeout=900)
    finally:
        process.kill()  # no-op for a process that has ended; else its steps would continue
    assert process.returncode == 0, said[-2000:]


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Send SIGKILL as soon as a condition holds."""
    end = time.monotonic() + 300
    try:
        while not condition():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()


def log_has(log: Path, text: str) -> bool:
    return log.exists() and text in log.read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_between_and_inside_rounds(place: Path) -> None:
    flags = ("--rounds", "2", "--score", "cross_fitted", "--no_reports")
    finish(start(place, "whole", *flags))
    run = place / "killed"
    moments: tuple[Callable[[], bool], ...] = (
        # inside the second epoch of a training, which goes on from the first one's checkpoint
        lambda: log_has(run / "logs" / "train_0_b.log", "Train Epoch: 1"),
        lambda: (run / "logs" / "embed_0.log").exists(),
        lambda: (run / "done" / "next_subset_1.json").exists(),  # between two rounds
        lambda: log_has(run / "logs" / "train_1_a.log", "Train Epoch: 0"),
    )
    for moment in moments:
        kill_when(start(place, "killed", *flags), moment)
        assert not (run / "finished.json").exists()
    finish(start(place, "killed", *flags))
    for name in ("round_1/subset.npy", "round_1/subset_a.npy", "subset.npy"):
        assert (run / name).read_bytes() == (place / "whole" / name).read_bytes(), name
    assert np.load(run / "subset.npy").shape == (SAMPLES,)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_more_rounds_and_judging(place: Path) -> None:
    """A further round resumes a finished run, and labels may be added later."""
    finish(start(place, "run", "--rounds", "1", "--no_reports"))
    first = (place / "run" / "subset.npy").read_bytes()
    judge = ("--labels", "kinds.parquet", "--noise_kinds", *NOISE)
    began = time.time()
    finish(start(place, "run", "--rounds", "2", *judge))
    run = place / "run"
    assert (
        (run / "round_1" / "subset.npy").read_bytes() == first != (run / "subset.npy").read_bytes()
    )
    assert (run / "round_0" / "metadata" / "00000000.parquet").stat().st_mtime < began
    found = json.loads((run / "round_1" / "diagnostics.json").read_text())
    assert 0 < found["subset"]["clean_precision"] < 1
    assert (run / "report" / "index.html").exists()
    assert not list(run.glob("round_*/metadata/*.npz"))
    assert len(list((run / "round_0" / "metadata").glob("*.parquet"))) == 1
    finish(start(place, "run", "--rounds", "1", "--train_last", "--no_reports"))
    assert (run / "subset.npy").read_bytes() == first  # of round 1 again, which has been trained on
    refused = start(place, "run", "--rounds", "2", "--score", "info_nce")
    said = refused.communicate()[1]
    assert refused.returncode == 2
    assert "made with score 'alignment', now it is 'info_nce'" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("selector", ["m_flyt", "e_flyt"])
def test_closed_loop(place: Path, selector: str) -> None:
    write_labelled(place / "downstream", "downstream", 0)
    columns = ("--scores_dir", "scores", "--score_columns", "caption_length")
    finish(
        start(
            place, "run", "--rounds", "1", "--selector", selector, "--downstream_dir", "downstream",
            *(columns if selector == "m_flyt" else ()), "--random_share", "0.25", "--no_reports",
            "--flyt_flags", "--preset tiny --num_steps 2 --downstream_batch_size 100",
        )
    )  # fmt: skip
    assert np.load(place / "run" / "subset.npy").shape == (SAMPLES,)
    assert np.load(place / "run" / "round_0" / "selected.npy").shape == (SAMPLES * 3 // 4,)


def test_wrong_flags_are_refused_first(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--selector", "m_flyt"), "--downstream_dir"),
        (("--downstream_dir", "downstream"), "--selector"),
        (("--labels", "kinds.parquet"), "--noise_kinds"),
        (("--labels", "kinds.parquet", "--noise_kinds", "swaped"), "swaped"),
        (("--labels", "gone.parquet", "--noise_kinds", "swapped"), "gone.parquet"),
        (("--temperature", "0.1"), "--temperature"),
        (("--selector", "e_flyt", "--downstream_dir", "gone"), "--downstream_dir gone"),
        (("--rounds", "0"), "--rounds"),
    ]
    for flags, named in cases:
        with pytest.raises(SystemExit) as ended:
            main(words("run", *flags))
        assert ended.value.code == 2
        assert named in capsys.readouterr().err.splitlines()[-1]
    assert not (place / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks(place: Path) -> None:
    """Under torchrun both ranks train, and the run finishes."""
    (place / "sitecustomize.py").write_text(
        "import torch\n"
        "from tests.open_clip_hook.seeded_trainer import CpuDistributedDataParallel\n"
        "torch.nn.parallel.DistributedDataParallel = CpuDistributedDataParallel\n"
    )
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    finish(start(place, "run", "--rounds", "1", "--no_reports", launcher=torchrun))
    assert np.load(place / "run" / "subset.npy").shape == (SAMPLES,)
    said = (place / "run" / "logs" / "train_0_model.log").read_text()
    assert "total 2" in said
