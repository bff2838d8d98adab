"""The tour: its table, and a whole tour over a tiny pool, undisturbed and killed."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("open_clip")
pytest.importorskip("webdataset")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from datacomp_flyt.demo.experiment import Experiment
from datacomp_flyt.demo.tour import TITLES, contents_of, folder_of, results_table, steps_of
from datacomp_flyt.pool.uids import UID_DTYPE
from tests.conftest import REPOSITORY, hex_uids
from tests.demo.tiny_tour import experiment

SPOILED = {"swapped", "lookalike", "boilerplate", "blank", "cropped", "duplicate"}
SELECTIONS = ("clip_score", "m_flyt_scs")


def contents_by_hand(folder: Path, name: str) -> dict[str, float]:
    """Count the pairs and the spoiled share of the draws one by one."""
    kinds = {row["uid"]: row["kind"] for row in pq.read_table(folder / "kinds.parquet").to_pylist()}
    draws = list(kinds)
    if name != "no_filter":
        subset = np.load(folder / "subsets" / f"{name}.npy")
        draws = [f"{high:016x}{low:016x}" for high, low in subset.tolist()]
    spoiled = [uid for uid in draws if kinds[uid] in SPOILED]
    return {"pairs": len(set(draws)), "spoiled": len(spoiled) / len(draws)}


# --- quickly


def test_contents_of(tmp_path: Path) -> None:
    uids = hex_uids(40)  # in no order, some alike in their first half
    kinds = ["true", "off_task", *sorted(SPOILED)] * 5
    pq.write_table(pa.table({"uid": uids, "kind": kinds}), tmp_path / "kinds.parquet")
    (tmp_path / "subsets").mkdir()
    rng = np.random.default_rng(0)
    for name, chosen in (("clip_score", rng.permutation(40)[:13]), ("m", rng.integers(0, 40, 90))):
        pairs = sorted((int(uids[i][:16], 16), int(uids[i][16:], 16)) for i in chosen)
        np.save(tmp_path / "subsets" / f"{name}.npy", np.array(pairs, UID_DTYPE))
        found = contents_of(tmp_path, name)
        assert found == pytest.approx(contents_by_hand(tmp_path, name))
        assert found["pairs"] == len(set(chosen.tolist()))
    assert contents_of(tmp_path, "no_filter") == {"pairs": 40, "spoiled": 0.75}


def results_of(*accuracies: tuple[float, float, float]) -> list[dict[str, dict[str, float]]]:
    """Return made-up results of the three selections, one for each seed."""
    return [
        {
            name: {
                "pairs": 1000.0 * (rank + 1) + 100 * seed,
                "spoiled": 0.5 - 0.1 * rank,
                "accuracy": accuracy,
                "retrieval": accuracy / 2,
            }
            for rank, (name, accuracy) in enumerate(zip(TITLES, row, strict=True))
        }
        for seed, row in enumerate(accuracies)
    ]


def test_a_table_of_one_seed() -> None:
    assert results_table(results_of((0.25, 0.75, 0.5))).splitlines() == [
        "trained on                  pairs  spoiled  accuracy  retrieval",
        "---------------------------------------------------------------",
        "all of the pool             1,000      50%     25.0%      12.5%",
        "CLIP score, top 30%         2,000      40%     75.0%      37.5%",
        "M-FLYT + Soft Cap Sampling  3,000      30%     50.0%      25.0%",
        "",
        "Best: CLIP score, top 30%.",
    ]


def test_a_table_of_several_seeds() -> None:
    rows = [(0.2, 0.31, 0.9), (0.4, 0.37, 0.1), (0.3, 0.52, 0.5)]
    lines = results_table(results_of(*rows)).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    for line, values, pairs in zip(lines[2:5], zip(*rows, strict=True), (1, 2, 3), strict=True):
        mean, error = statistics.mean(values), statistics.stdev(values) / 3**0.5
        cells = [cell.strip() for cell in line[28:].split("  ") if cell]
        assert cells[0] == f"{pairs},100"
        assert cells[1] == f"{60 - 10 * pairs}%"
        assert cells[2] == f"{100 * mean:.1f}% ± {100 * error:.1f}%"
        assert cells[3] == f"{50 * mean:.1f}% ± {50 * error:.1f}%"
    assert lines[-1] == "Best: M-FLYT + Soft Cap Sampling."


def test_experiments_have_folders_and_steps_of_their_own() -> None:
    four = [Experiment(noise, seed) for noise in (0.3, 0.5) for seed in (0, 1)]
    assert len({folder_of(Path("x"), each) for each in four}) == 4
    for each in four:
        steps = steps_of(each)
        assert len({step.name for step in steps}) == len(
            steps
        )  # logs and notes are named after steps
        words = [word for step in steps for word in step.words]
        assert not [word for word in words if os.path.isabs(word)]  # a folder can be moved


# --- whole tours


def command(work: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo.tiny_tour", str(work)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tour(work: Path) -> str:
    """Run a tour to its end, and return its output."""
    process = command(work)
    try:
        said, _ = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, said[-5000:]
    return said


def files_in(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the time and the size of each file."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run an undisturbed tour; return its folder and its output."""
    work = tmp_path_factory.mktemp("whole")
    said = tour(work)
    return folder_of(work, experiment()), said


@pytest.mark.slow
def test_a_whole_tour(whole: tuple[Path, str]) -> None:
    folder, said = whole
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("trained on"))
    results = json.loads((folder / "results.json").read_text())
    for line, (name, title) in zip(lines[start + 2 : start + 5], TITLES.items(), strict=True):
        found = contents_by_hand(folder, name)
        assert line.startswith(title)
        assert line[len(title) :].split() == [
            f"{found['pairs']:,}", f"{100 * found['spoiled']:.0f}%",
            f"{100 * results[name]['accuracy']:.1f}%", f"{100 * results[name]['retrieval']:.1f}%",
        ]  # fmt: skip
        assert (folder / "runs" / name / "checkpoints" / "epoch_latest.pt").is_file()
    assert contents_by_hand(folder, "no_filter")["pairs"] == 400
    assert contents_by_hand(folder, "clip_score")["pairs"] == 120
    assert len(np.load(folder / "subsets" / "m_flyt_scs.npy")) == 512
    page = folder / "report" / "index.html"
    assert all(name in page.read_text() for name in SELECTIONS)
    assert f"What was selected, as a page: {page}" in lines
    commands = [step.command for step in steps_of(experiment())]
    assert [line[2:] for line in lines if line.startswith("$ ")] == commands


@pytest.mark.slow
def test_a_second_run_does_nothing(whole: tuple[Path, str]) -> None:
    folder, first = whole
    before = files_in(folder)
    second = tour(folder.parents[1])
    assert files_in(folder) == before
    assert second.count("  done before\n") == len(steps_of(experiment()))
    assert second[second.index("\ntrained on") :] == first[first.index("\ntrained on") :]


def kill_in(work: Path, step: str) -> None:
    """Run the tour until it is in a step, then kill it."""
    log = folder_of(work, experiment()) / "logs" / f"{step}.log"
    process = command(work)
    try:
        while not log.exists():
            if process.poll() is not None:
                pytest.fail(str(process.communicate()[0])[-5000:])
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.kill()
        process.communicate()
    assert not log.parents[1].joinpath("done", f"{step}.json").exists()


@pytest.mark.slow
def test_killed_and_run_again(whole: tuple[Path, str], tmp_path: Path) -> None:
    """The killed tour starts from the other's reference, since open_clip shuffles by process id."""
    undisturbed = whole[0]
    folder = folder_of(tmp_path, experiment())
    shutil.copytree(undisturbed / "runs" / "reference", folder / "runs" / "reference")
    (folder / "done").mkdir()
    shutil.copy(undisturbed / "done" / "train_reference.json", folder / "done")
    for step in ("embed_pool", "m_flyt", "train_clip_score"):
        kill_in(tmp_path, step)
    said = tour(tmp_path)
    assert Counter(line.strip() for line in said.splitlines())["done before"] > 10
    for name in SELECTIONS:
        content = (folder / "subsets" / f"{name}.npy").read_bytes()
        assert content == (undisturbed / "subsets" / f"{name}.npy").read_bytes()
    model = "m_flyt/scoring_model.safetensors"
    assert (folder / model).read_bytes() == (undisturbed / model).read_bytes()
    assert (folder / "report" / "index.html").is_file()
