"""The steps of a run, as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datacomp_flyt.self_filtering.rounds import Run
from datacomp_flyt.self_filtering.settings import Settings
from datacomp_flyt.self_filtering.trainer_command import TrainerCommand
from datacomp_flyt.steps import Step

TRAINER = TrainerCommand(("-m", "open_clip_train.main", "--model", "M"), "s/{0..3}.tar")


def steps(settings: dict[str, Any], **others: Any) -> dict[str, Step]:
    run = Run("run", Settings(1000, **settings), TRAINER, "M", **others)
    listed = list(run.steps())
    found = {step.name: step for step in listed}
    assert len(found) == len(listed)
    return found


def value(step: Step, flag: str) -> str:
    return step.words[step.words.index(flag) + 1]


def test_one_model() -> None:
    found = steps({"rounds": 2})
    wanted = [
        "initial_subset",
        "train_0_model",
        "embed_0",
        "score_0",
        "next_subset_1",
        "train_1_model",
    ]
    assert [name for name in found if name in wanted] == wanted
    assert "train_2_model" not in found
    assert value(found["train_1_model"], "--subset") == "run/round_1/subset.npy"
    assert value(found["train_1_model"], "--train-num-samples") == "1000"
    assert value(found["next_subset_2"], "--scores_dir") == "run/round_1/scores"
    assert value(found["next_subset_2"], "--random_share") == "0.2"
    assert "--pretrained" not in found["train_1_model"].words
    assert found["finalize_2"].again
    trained = steps({"rounds": 2}, train_last=True)
    assert set(trained) - set(found) == {"train_2_model"}


def test_two_models_share_the_samples_of_a_round() -> None:
    found = steps({"rounds": 2, "score": "cross_fitted"})
    for model in "ab":
        step = found[f"train_1_{model}"]
        assert value(step, "--subset") == f"run/round_1/subset_{model}.npy"
        assert value(step, "--train-num-samples") == "500"
    assert found["embed_1"].words.count("--encoder") == 2
    assert "--halves" in found["next_subset_2"].words
    assert found["score_1"].words[-1] == "run/round_1/subset.npy"
    assert "run/round_0/subset.npy" not in found["score_1"].words


def test_continuing_from_the_weights_of_the_round_before() -> None:
    found = steps({"rounds": 2, "score": "cross_fitted", "continued": True})
    assert "--pretrained" not in found["train_0_a"].words
    before = "run/round_0/runs/a/checkpoints/epoch_latest.pt"
    assert value(found["train_1_a"], "--pretrained") == before
    # a model that continues has seen the pairs of earlier rounds
    assert found["score_1"].words[-2:] == ("run/round_0/subset.npy", "run/round_1/subset.npy")


def test_more_rounds_begin_with_the_same_commands() -> None:
    few, many = steps({"rounds": 2}), steps({"rounds": 3})
    common = [name for name in few if not few[name].aside and name != "finalize_2"]
    assert [few[name] for name in common] == [many[name] for name in common]


def test_all_ranks_run_trainings() -> None:
    found = steps({"rounds": 1, "selector": "m_flyt"}, downstream_dir="none")
    together = [name for name, step in found.items() if step.together]
    assert together == ["train_0_model", "learn_0"]


def test_closed_loop(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    closed = {"rounds": 1, "selector": "m_flyt", "random_share": 0.1}
    given = {"scores_dir": "given", "score_columns": ("DFN-FT",), "downstream_dir": str(tmp_path)}
    found = steps(closed, **given)
    assert value(found["select_0"], "--num_samples") == "900"
    assert value(found["next_subset_1"], "--selected") == "run/round_0/selected.npy"
    assert value(found["next_subset_1"], "--draws") == "1000"
    learn = found["learn_0"]
    reference = "run/round_0/runs/model/checkpoints/epoch_latest.pt"
    assert value(learn, "--reference_init") == reference
    assert value(learn, "--preset") == "m_flyt_base"
    start = learn.words.index("--score_columns") + 1
    assert learn.words[start : learn.words.index("--downstream_dir")] == (
        "model_alignment", "model_info_nce", "model_vas", "model_norm_sim", "DFN-FT",
    )  # fmt: skip
    made = [name for name in found if name.startswith(("model_", "link"))]
    assert len(made) == 5

    tasks = steps(closed, **{**given, "downstream_dir": str(tmp_path.parent)})
    assert "model_norm_sim" not in tasks["learn_0"].words  # folders of tasks: no tars of its own
    embeddings = steps({**closed, "selector": "e_flyt"}, downstream_dir=str(tmp_path))
    assert value(embeddings["learn_0"], "--features") == "embeddings"
    assert "--scores_dir" not in embeddings["select_0"].words
