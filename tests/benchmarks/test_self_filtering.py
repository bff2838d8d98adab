"""What the benchmark of self-filtering runs, and what its tables have."""

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
    """And the model that is judged is the last that was trained."""
    seen = [int(value(step, "--train-num-samples")) for step in trainings(name)]
    assert sum(seen) == pytest.approx(PLAN.total, abs=4)
    *_, last, evaluation = PLAN.steps(name)
    assert last == trainings(name)[-1]
    place = f"{value(last, '--logs')}/{value(last, '--name')}/checkpoints/epoch_latest.pt"
    assert value(evaluation, "--checkpoint") == f"{name}={place}"
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
    place = folder_of(folder, Experiment(0.4, seed))
    for number in range(variant.rounds + 1):
        of_round = place / self_filtering.folder_of_rounds(name) / f"round_{number}"
        of_round.mkdir(parents=True)
        diagnostics: dict[str, Any] = {"auc": {"self_filtering": figure + number}}
        seen = {"self_filtering_seen": figure, "self_filtering_unseen": 3 * figure + number}
        if number < variant.rounds and name == "cross_fitted":
            diagnostics["auc_in_mix"] = seen
        if number:
            diagnostics["confident"] = {"noise_precision": figure}
        (of_round / "diagnostics.json").write_text(json.dumps(diagnostics))
    reached = {name: {"accuracy": figure, "retrieval": figure / 2}}
    (place / f"results_{name}.json").write_text(json.dumps(reached))


def test_rounds_are_read_by_seed(tmp_path: Path) -> None:
    """A variant that has not ended anywhere is left out, and one of fewer seeds is of those."""
    for seed in (1, 2):
        write_run(tmp_path, seed, OURS, VARIANTS[OURS], 0.1 * seed)
    write_run(tmp_path, 2, "m_flyt_once", VARIANTS["m_flyt_once"], 0.5)
    (folder_of(tmp_path, Experiment(0.4, 1)) / "runs" / "restarted_rounds").mkdir()
    places = [folder_of(tmp_path, Experiment(0.4, seed)) for seed in (1, 2)]
    assert self_filtering.read_results(places[1]).keys() == {OURS, "m_flyt_once"}
    found = self_filtering.by_round(places)
    assert found.keys() == {"auc", "noise_precision"}
    assert [round(one["mean"], 6) for one in found["auc"][OURS]] == [0.15, 1.15, 2.15, 3.15]
    assert found["auc"][OURS][0]["standard_error"] == pytest.approx(0.05)
    assert found["auc"]["m_flyt_once"][1]["by_seed"] == [1.5]
    assert found["noise_precision"][OURS][0] is None
    lines = self_filtering.table_of_rounds(found).splitlines()
    assert "| auc, round | 0 | 1 | 2 | 3 |" in lines
    assert f"| {OURS} |  | 0.150 ± 0.050 | 0.150 ± 0.050 | 0.150 ± 0.050 |" in lines
    assert "| m_flyt_once | 0.500 | 1.500 |  |  |" in lines


def test_unseen_pairs_are_compared_by_seed(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, seed, "cross_fitted", VARIANTS["cross_fitted"], 0.1 * seed)
    places = [folder_of(tmp_path, Experiment(0.4, seed)) for seed in (1, 2, 3)]
    first, second, third = self_filtering.unseen_less_seen(places)
    assert first["by_seed"] == pytest.approx([0.2, 0.4])
    assert second["by_seed"] == pytest.approx([1.2, 1.4])
    assert third["mean"] == pytest.approx(2.3)
    assert third["standard_error"] == pytest.approx(0.1)
