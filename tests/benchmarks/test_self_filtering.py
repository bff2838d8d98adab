"""The steps and the tables of the benchmark of self-filtering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from benchmarks import self_filtering
from benchmarks.self_filtering import ABLATIONS, OURS, VARIANTS, Plan, Variant
from datacomp_flyt.demo.experiment import Experiment
from datacomp_flyt.demo.tour import folder_of
from datacomp_flyt.steps import Step

PLAN = Plan(Experiment(0.4, 1), 64_000)
ALL = VARIANTS | ABLATIONS


def value(step: Step, flag: str) -> str:
    return step.words[step.words.index(flag) + 1]


def trainings(name: str) -> list[Step]:
    return [step for step in PLAN.steps(name) if "--train-num-samples" in step.words]


@pytest.mark.parametrize("name", ALL)
def test_all_variants_see_as_many_samples(name: str) -> None:
    """The evaluated model is the last one that was trained."""
    seen = [int(value(step, "--train-num-samples")) for step in trainings(name)]
    assert sum(seen) == pytest.approx(PLAN.total, abs=4)
    *_, last, evaluation = PLAN.steps(name)
    assert last == trainings(name)[-1]
    checkpoint = f"{value(last, '--logs')}/{value(last, '--name')}/checkpoints/epoch_latest.pt"
    assert value(evaluation, "--checkpoint") == f"{name}={checkpoint}"
    starts = ["--pretrained" in step.words for step in trainings(name)]
    assert starts[-1] == ALL[name].continued
    assert not starts[0]


def test_others_see_as_many() -> None:
    for step in trainings("others"):
        assert int(value(step, "--train-num-samples")) == PLAN.total


def test_a_seed_is_in_one_folder() -> None:
    steps = [step for name in ("others", *ALL) for step in PLAN.steps(name) if step.name != "pool"]
    assert len({step.name for step in steps}) == len(steps)


def write_run(folder: Path, seed: int, name: str, variant: Variant, figure: float) -> None:
    seed_folder = folder_of(folder, Experiment(0.4, seed))
    for index in range(variant.rounds + 1):
        round_folder = seed_folder / self_filtering.folder_of_rounds(name) / f"round_{index}"
        round_folder.mkdir(parents=True)
        diagnostics: dict[str, Any] = {"auc": {"self_filtering": figure + index}}
        seen = {"self_filtering_seen": figure, "self_filtering_unseen": 3 * figure + index}
        if index < variant.rounds and name == "cross_fitted":
            diagnostics["auc_in_subset"] = seen
        if index:
            diagnostics["confident"] = {"noise_precision": figure}
        (round_folder / "diagnostics.json").write_text(json.dumps(diagnostics))
    reached = {name: {"accuracy": figure, "retrieval": figure / 2}}
    (seed_folder / f"results_{name}.json").write_text(json.dumps(reached))


def test_rounds_are_read_by_seed(tmp_path: Path) -> None:
    """A variant without results is left out; means are over the seeds that have results."""
    for seed in (1, 2):
        write_run(tmp_path, seed, OURS, VARIANTS[OURS], 0.1 * seed)
    write_run(tmp_path, 2, "m_flyt_once", VARIANTS["m_flyt_once"], 0.5)
    (folder_of(tmp_path, Experiment(0.4, 1)) / "runs" / "restarted_rounds").mkdir()
    folders = [folder_of(tmp_path, Experiment(0.4, seed)) for seed in (1, 2)]
    assert self_filtering.read_results(folders[1]).keys() == {OURS, "m_flyt_once"}
    rounds = self_filtering.by_round(folders)
    assert rounds.keys() == {"auc", "noise_precision"}
    assert [round(one["mean"], 6) for one in rounds["auc"][OURS]] == [0.15, 1.15, 2.15, 3.15]
    assert rounds["auc"][OURS][0]["standard_error"] == pytest.approx(0.05)
    assert rounds["auc"]["m_flyt_once"][1]["by_seed"] == [1.5]
    assert rounds["noise_precision"][OURS][0] is None
    lines = self_filtering.table_of_rounds(rounds).splitlines()
    assert "| auc, round | 0 | 1 | 2 | 3 |" in lines
    assert f"| {OURS} |  | 0.150 ± 0.050 | 0.150 ± 0.050 | 0.150 ± 0.050 |" in lines
    assert "| m_flyt_once | 0.500 | 1.500 |  |  |" in lines


def test_unseen_pairs_are_compared_by_seed(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, seed, "cross_fitted", VARIANTS["cross_fitted"], 0.1 * seed)
    folders = [folder_of(tmp_path, Experiment(0.4, seed)) for seed in (1, 2, 3)]
    first, second, third = self_filtering.unseen_less_seen(folders)
    assert first["by_seed"] == pytest.approx([0.2, 0.4])
    assert second["by_seed"] == pytest.approx([1.2, 1.4])
    assert third["mean"] == pytest.approx(2.3)
    assert third["standard_error"] == pytest.approx(0.1)
