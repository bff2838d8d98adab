"""Settings and the trainer's command: refusals, and the flags that a round adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datacomp_flyt.self_filtering.settings import Settings
from datacomp_flyt.self_filtering.trainer_command import TrainerCommand, split_words, train_data
from tests.conftest import refusal

MAIN = ("-m", "open_clip_train.main", "--model", "ViT-B-32")
DATACOMP = ("datacomp/train.py", "--scale", "small")


def test_schedules() -> None:
    constant = Settings(100, random_share=0.25, rounds=4)
    assert [constant.random_share_of(k) for k in range(5)] == [1, 0.25, 0.25, 0.25, 0.25]
    linear = Settings(100, random_share=0.2, rounds=4, random_schedule="linear")
    np.testing.assert_allclose(
        [linear.random_share_of(k) for k in range(5)], [1, 0.8, 0.6, 0.4, 0.2]
    )


def test_models() -> None:
    assert Settings(100).models == ("model",)
    assert Settings(100, score="cross_fitted").models == ("a", "b")


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("samples_per_round", {"samples_per_round": 0}),
        ("samples_per_round", {"samples_per_round": 2**31}),
        ("rounds", {"rounds": 0}),
        ("score", {"score": "loss"}),
        ("score", {"score": "info_nce", "selector": "m_flyt"}),
        ("confident_fraction", {"confident_fraction": 0.0}),
        ("confident_fraction", {"confident_fraction": float("nan")}),
        ("random_share", {"random_share": 1.1}),
        ("temperature", {"temperature": -1.0}),
        ("repetition_penalty", {"repetition_penalty": -4.0}),
        ("random_share", {"random_share": 1.0, "selector": "e_flyt"}),
    ],
)
def test_out_of_range(flag: str, values: dict[str, Any]) -> None:
    assert refusal(lambda: Settings(**{"samples_per_round": 10, **values})).startswith(f"--{flag} ")


def test_flags_that_a_round_adds(tmp_path: Path) -> None:
    command = TrainerCommand((*MAIN, "--epochs=4"), "s/{0..3}.tar")
    words = command.train("model", "run/round_1/runs", 1000, "before.pt")
    assert words[: len(MAIN) + 1] == (*MAIN, "--epochs=4")
    flags = dict(zip(words[len(MAIN) + 1 :: 2], words[len(MAIN) + 2 :: 2], strict=False))
    assert flags["--train-data"] == "s/{0..3}.tar"
    assert flags["--train-num-samples"] == "250"
    assert flags["--pretrained"] == "before.pt"
    assert "--epochs" not in flags
    once = TrainerCommand(MAIN, "s/{0..3}.tar").train("model", "runs", 1000, None)
    assert once[once.index("--epochs") + 1] == "1"
    assert "--pretrained" not in once


def test_datacomps_train_py() -> None:
    command = TrainerCommand(DATACOMP, "shards")
    assert command.samples_per_round(None) == 12_800_000
    assert command.model == "ViT-B-32"
    assert "scale" in refusal(command.samples_per_round, 5)
    words = command.train("a", "runs", 1, None)
    assert words == (
        *DATACOMP, "--data_dir", "shards", "--output_dir", "runs", "--exp_name", "a",
    )  # fmt: skip
    assert "--continue" in refusal(command.train, "a", "runs", 1, "before.pt")
    pattern = TrainerCommand(DATACOMP, "s/{0..3}.tar")
    assert "folder" in refusal(pattern.train, "a", "runs", 1, None)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "command is missing"),
        ((*MAIN, "--train-data", "x"), "--train-data"),
        ((*MAIN, "--logs=x"), "--logs"),
        ((*MAIN, "--train_num_samples", "5"), "--train-num-samples"),
        ((*DATACOMP, "--exp_name", "x"), "--exp_name"),
        ((*MAIN, "--resume", "latest"), "--resume"),
    ],
)
def test_flags_that_a_round_sets(words: tuple[str, ...], named: str) -> None:
    assert named in refusal(lambda: TrainerCommand(words, "shards"))


def test_the_budget_is_required() -> None:
    assert "--samples_per_round" in refusal(TrainerCommand(MAIN, "s").samples_per_round, None)


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["00", "01", "02"], "{00..02}.tar"),
        (["7"], "7.tar"),
        (["00", "02"], "{00,02}.tar"),
        (["9", "10"], "{10,9}.tar"),
        (["a", "b-c"], "{a,b-c}.tar"),
    ],
)
def test_a_folder_becomes_a_pattern(tmp_path: Path, names: list[str], pattern: str) -> None:
    from braceexpand import braceexpand

    for name in names:
        (tmp_path / f"{name}.tar").touch()
    found = train_data(str(tmp_path))
    assert found == f"{tmp_path}/{pattern}"
    assert sorted(braceexpand(found)) == sorted(str(tmp_path / f"{name}.tar") for name in names)


def test_folders_without_a_pattern(tmp_path: Path) -> None:
    assert "braces" in refusal(train_data, "shards/*.tar")
    assert "no .tar" in refusal(train_data, str(tmp_path))
    for name in ("a,b", "c"):
        (tmp_path / f"{name}.tar").touch()
    assert "pattern" in refusal(train_data, str(tmp_path))


def test_quotes() -> None:
    assert split_words("--preset 'a b'", "--flyt_flags") == ("--preset", "a b")
    assert "--flyt_flags" in refusal(split_words, "--preset 'a", "--flyt_flags")
