"""The arithmetic and the input files of the benchmark `evidence`, against plain loops."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from benchmarks import evidence, seeds
from datacomp_flyt.demo.experiment import Experiment

OURS = "m_flyt_scs"
NAMES = ("no_filter", "clip_score_30", OURS)
ABLATIONS = ("hcs", "clip_loss")
Results = dict[str, dict[str, float]]


def results_of(seed: int, names: tuple[str, ...] = NAMES) -> Results:
    rng = random.Random(f"{seed} {names}")
    return {name: {"accuracy": rng.random(), "retrieval": rng.random()} for name in names}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))


def compared_by_loops(runs: list[Results], name: str, metric: str) -> dict[str, Any]:
    """Return the result of `compare` for one selection and one metric."""
    values, less = [], []
    for run in runs:
        if name in run:
            values.append(run[name][metric])
            less.append(run[OURS][metric] - run[name][metric])
    mean, error = mean_and_error(values)
    mean_less, error_less = mean_and_error(less)
    return {
        metric: {"mean": mean, "standard_error": error, "by_seed": values},
        f"{metric}_below_ours": {
            "mean": mean_less,
            "standard_error": error_less,
            "by_seed": less,
        },
    }


def test_comparison_against_loops() -> None:
    """Five seeds, of which three have ablations."""
    runs = [results_of(seed) | results_of(seed, ABLATIONS) for seed in range(3)]
    runs += [results_of(seed) for seed in (3, 4)]
    compared = seeds.compare(runs, OURS)
    assert list(compared) == [*NAMES, *ABLATIONS]
    for name, result in compared.items():
        assert result.pop("seeds") == (3 if name in ABLATIONS else 5)
        expected = {}
        for metric in ("accuracy", "retrieval"):
            expected |= compared_by_loops(runs, name, metric)
        assert result.keys() == expected.keys()
        for key in expected:
            assert result[key].keys() == expected[key].keys()
            for figure, value in expected[key].items():
                assert result[key][figure] == pytest.approx(value, rel=1e-12, abs=1e-15), (
                    name,
                    key,
                )
    assert compared[OURS]["accuracy_below_ours"]["by_seed"] == [0] * 5


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ ten times as much as selections, which differ equally in each seed."""
    runs = [
        {name: dict.fromkeys(("accuracy", "retrieval"), 0.1 * seed + 0.01 * rank)
         for rank, name in enumerate(NAMES)}
        for seed in range(4)
    ]  # fmt: skip
    no_filter = seeds.compare(runs, OURS)["no_filter"]
    assert no_filter["accuracy_below_ours"]["mean"] == pytest.approx(0.02)
    assert no_filter["accuracy_below_ours"]["standard_error"] == pytest.approx(0, abs=1e-12)
    assert no_filter["accuracy"]["standard_error"] > 0.05


def test_one_seed_has_no_error() -> None:
    compared = seeds.compare([results_of(0)], OURS)
    assert all(result["accuracy"]["standard_error"] is None for result in compared.values())
    assert "±" not in seeds.table(compared)


def write_runs(folder: Path, noise: float) -> list[Results]:
    """Write files of seeds 0 to 3, with ablations of 1 and 2; return the expected runs."""
    expected = {}
    for seed in range(4):
        seed_folder = folder / f"noise_{noise}" / f"seed_{seed}"
        seed_folder.mkdir(parents=True)
        expected[seed] = results_of(seed)
        (seed_folder / "results.json").write_text(json.dumps(expected[seed]))
        if seed in (1, 2):
            more = results_of(seed, ABLATIONS)
            (seed_folder / "ablations.json").write_text(json.dumps(more))
            expected[seed] = expected[seed] | more
    unfinished = folder / f"noise_{noise}" / "seed_4"
    unfinished.mkdir()
    (unfinished / "ablations.json").write_text(json.dumps(results_of(4, ABLATIONS)))
    return list(expected.values())


def test_runs_are_read_with_their_ablations(tmp_path: Path) -> None:
    expected = write_runs(tmp_path, 0.5)
    (tmp_path / "noise_0.35").mkdir()
    assert evidence.read_runs(tmp_path, 0.5, range(5)) == expected
    assert evidence.read_runs(tmp_path, 0.5, [3, 1]) == [expected[3], expected[1]]
    compared = seeds.compare(expected, OURS)
    assert {name: result["seeds"] for name, result in compared.items()} == {
        **dict.fromkeys(NAMES, 4), **dict.fromkeys(ABLATIONS, 2),
    }  # fmt: skip
    assert evidence.read_runs(tmp_path, 0.35, range(5)) == []


def test_trainings_on_one_selection_are_averaged(tmp_path: Path) -> None:
    folder = tmp_path / "noise_0.5" / "seed_3"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results_of(0)))
    more = {f"{OURS}_again_{k}": {"accuracy": 0.1 * k, "retrieval": 0.2 * k} for k in (1, 2)}
    (folder / "again.json").write_text(json.dumps(more))
    (run,) = evidence.read_runs(tmp_path, 0.5, [3])
    assert run.keys() == set(NAMES)
    first = results_of(0)
    assert run["no_filter"] == first["no_filter"]
    assert run[OURS]["accuracy"] == pytest.approx((first[OURS]["accuracy"] + 0.1 + 0.2) / 3)
    assert run[OURS]["retrieval"] == pytest.approx((first[OURS]["retrieval"] + 0.2 + 0.4) / 3)


def test_table() -> None:
    runs = [results_of(seed) for seed in range(3)]
    lines = seeds.table(seeds.compare(runs, OURS)).splitlines()
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert columns == [
        "trained on", "seeds", "accuracy", "less than ours", "retrieval", "less than ours",
    ]  # fmt: skip
    assert lines[1] == "|" + "---|" * len(columns)
    assert len(lines) == 2 + len(NAMES)
    for line, name in zip(lines[2:], NAMES, strict=True):
        cells = [name, "3"]
        for metric in ("accuracy", "retrieval"):
            for figures in compared_by_loops(runs, name, metric).values():
                cells.append(f"{figures['mean']:.3f} ± {figures['standard_error']:.3f}")
        assert line == f"| {' | '.join(cells)} |"


def test_the_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a run, and before there are results of the other noise level."""
    monkeypatch.setattr(evidence, "run_steps", None)
    runs = write_runs(tmp_path, 0.5)
    words = ["evidence", "--table", "--folder", str(tmp_path), "--noise", "0.35", "0.5"]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "0", "1", "2", "3"])
    evidence.main()
    out, err = capsys.readouterr()
    assert seeds.table(seeds.compare(runs, OURS)) in err
    result = json.loads(out)
    assert result["benchmark"] == "evidence"
    assert result["noise"]["0.35"] == {}
    mean = result["noise"]["0.5"]["no_filter"]["accuracy"]["mean"]
    assert mean == pytest.approx(sum(run["no_filter"]["accuracy"] for run in runs) / 4, rel=1e-3)


@pytest.mark.parametrize("part", evidence.PARTS)
def test_steps_use_what_earlier_ones_have_made(part: str) -> None:
    steps = evidence.steps_of(Experiment(0.5, 0), part)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    # the pool has a random subset, so none of the steps selects it
    trained, selected = set(), {"random_30"}
    for step in steps:
        words = step.words
        if step.name.startswith("select_"):
            selected.add(words[words.index("--save_path") + 1].split("/")[1].removesuffix(".npy"))
        elif step.name.startswith("train_") and "--name" in words:
            trained.add(words[words.index("--name") + 1])
            if "--subset" in words:
                subset = words[words.index("--subset") + 1]
                assert subset.split("/")[1].removesuffix(".npy") in selected
    evaluated = {word.split("=")[0] for word in steps[-1].words if word.endswith(".pt")}
    rest = set() if part in ("all", "few") else {"reference"}
    if part.endswith("again"):  # the first trainings were evaluated before
        rest = {name for name in trained if "_again_" not in name}
        assert len(evaluated) == 4
    assert evaluated == trained - rest


@pytest.mark.parametrize(
    "parts",
    [("all", "longer"), ("again", "ablations"), ("few_again", "ablations"), ("again", "longer")],
)
def test_parts_share_a_folder(parts: tuple[str, str]) -> None:
    """Both begin with the same steps, and no two other steps share a name."""
    experiment = Experiment(0.5, 0)
    both = [evidence.steps_of(experiment, part) for part in parts]
    shared = next(index for index, (a, b) in enumerate(zip(*both, strict=False)) if a != b)
    assert both[0][shared - 1].name == "m_flyt"
    first, second = ({step.name for step in steps[shared:]} for steps in both)
    assert not first & second
