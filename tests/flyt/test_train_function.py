"""`datacomp_flyt.train`, the function behind `datacomp-flyt train`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

import datacomp_flyt
from datacomp_flyt.flyt.train import TrainingResult
from datacomp_flyt.flyt.training_config import TrainingConfig
from tests.conftest import refusal
from tests.flyt import runs
from tests.flyt.runs import Data, bytes_of, make_data, metrics_of, parse

REQUIRED = {"preset", "train_data", "downstream_dir", "output_dir"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


def config_of(**options: Any) -> TrainingConfig:
    required = {"preset": "tiny", "train_data": "t", "downstream_dir": "d", "output_dir": "o"}
    return TrainingConfig(**required | options)


def test_the_function_writes_the_files_of_the_command(data: Data, tmp_path: Path) -> None:
    flags = data.flags(tmp_path / "function", "images") | {"num_steps": 2, "train_extractor": True}
    torch.set_num_threads(1)
    result = datacomp_flyt.train(**flags)
    last = metrics_of(tmp_path / "function")[-1]
    assert result == TrainingResult(
        scoring_model=tmp_path / "function" / "scoring_model.safetensors",
        reference_model=tmp_path / "function" / "reference_model.pt",
        extractor=tmp_path / "function" / "extractor.pt",
        metrics=tmp_path / "function" / "metrics.jsonl",
        steps=2,
        upstream_loss=result.upstream_loss,
        downstream_loss=result.downstream_loss,
    )
    assert result.upstream_loss == pytest.approx(last["upstream_loss"], rel=1e-5)
    assert result.downstream_loss == pytest.approx(last["downstream_loss"], rel=1e-5)
    assert runs.train(flags | {"output_dir": tmp_path / "command"}) == 0
    assert bytes_of(tmp_path / "function") == bytes_of(tmp_path / "command")
    again = datacomp_flyt.train(**flags, resume=True)
    assert (again.steps, again.downstream_loss) == (2, None)


def test_arguments_are_the_options_by_keyword() -> None:
    parameters = inspect.signature(datacomp_flyt.train).parameters.values()
    assert [each.name for each in parameters] == [option.name for option in fields(TrainingConfig)]
    assert {each.kind for each in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert {each.name for each in parameters if each.default is inspect.Parameter.empty} == REQUIRED
    described = inspect.getdoc(datacomp_flyt.train) or ""
    assert all(f"    {each.name}: " in described for each in parameters)


@pytest.mark.parametrize("preset", ["tiny", "m_flyt_base", "e_flyt_22"])
def test_flags_and_arguments_have_the_same_defaults(preset: str) -> None:
    assert parse("--preset", preset) == config_of(preset=preset)


@pytest.mark.parametrize(
    "option", [option.name for option in fields(TrainingConfig) if option.metadata["choices"]]
)
def test_a_value_that_is_no_choice(option: str) -> None:
    wrong: Any = ["other"] if option == "report_to" else "other"
    assert f"--{option} is 'other', wanted one of " in refusal(config_of, **{option: wrong})


def test_wrong_input_raises(data: Data, tmp_path: Path) -> None:
    flags = data.flags(tmp_path / "out") | {"downstream_dir": tmp_path / "none"}
    with pytest.raises(datacomp_flyt.InputError, match="--downstream_dir"):
        datacomp_flyt.train(**flags)
