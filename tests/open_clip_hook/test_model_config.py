"""`--model_config`: models that open_clip does not have are trained like those that it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip", reason="the train extra is not installed")
import open_clip
from open_clip import factory

from datacomp_flyt.open_clip_hook import install_hook
from datacomp_flyt.open_clip_hook.trainer import find_trainer
from tests.conftest import refusal
from tests.open_clip_hook.running import HERE, TRAIN_CLIP, environment, python
from tests.open_clip_hook.trainer_runs import Noise, Run, are_equal, difference, train

HOOK_TINY = HERE / "model_configs" / "hook-tiny.json"
TRAINER = find_trainer()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unregister the models of a test after it."""
    paths, configs = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    yield
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(configs)


def write_config(path: Path, **changes: Any) -> Path:
    config = {**json.loads(HOOK_TINY.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


@pytest.mark.usefixtures("registry")
def test_the_files_stem_becomes_a_model_of_open_clip(tmp_path: Path) -> None:
    path = write_config(tmp_path / "quite-new.json", embed_dim=12)
    assert "quite-new" not in open_clip.list_models()
    make_loss = getattr(TRAINER.main, TRAINER.loss_maker)
    hook = install_hook(model_config=str(path))
    try:
        assert "quite-new" in open_clip.list_models()
        model = open_clip.create_model("quite-new")
        assert model.text_projection.shape[1] == 12
        # the flag is enough by itself, and the loss stays the trainer's own
        assert TRAINER.main.get_data == hook._get_data
        assert getattr(TRAINER.main, TRAINER.loss_maker) is make_loss
        assert not hook.was_used
        hook._made_data = True
        assert hook.was_used  # also without a weighted loss
    finally:
        hook.remove()


@pytest.mark.usefixtures("registry")
def test_a_file_can_be_registered_twice_and_our_models_by_name(tmp_path: Path) -> None:
    path = write_config(tmp_path / "twice.json")
    for given in (str(path), str(path), "flyt-demo"):
        install_hook(model_config=given).remove()
    assert {"twice", "flyt-demo"} <= set(open_clip.list_models())


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("part", ["embed_dim", "vision_cfg", "text_cfg"])
def test_incomplete_files_are_refused(tmp_path: Path, part: str) -> None:
    path = write_config(tmp_path / "half.json", **{part: None})
    said = refusal(install_hook, model_config=str(path))
    assert f"--model_config {path} has no {part!r}" in said
    path.write_text("{")
    assert f"--model_config {path} is not JSON" in refusal(install_hook, model_config=str(path))
    assert "half" not in open_clip.list_models()
    assert TRAINER.main.get_data.__module__ != "datacomp_flyt.open_clip_hook.hook"


@pytest.mark.usefixtures("registry")
def test_names_of_other_models_are_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "ViT-B-32.json")
    said = refusal(install_hook, model_config=str(path))
    assert f"--model_config {path} has the name of another model of open_clip" in said


@pytest.mark.slow
def test_training_equals_the_stock_trainers(tmp_path: Path) -> None:
    """The stock trainer, with the same configuration under another name, is bit-identical."""
    path = write_config(tmp_path / "hook-other.json")
    noise = Noise(tmp_path / "noise")
    short = ("--train-num-samples", "64")
    made = train(
        tmp_path / "runs",
        noise,
        {
            "stock": Run(None, short),
            "ours": Run({"model_config": str(path)}, (*short, "--model", "hook-other")),
        },
    )
    stock, ours = made["stock"], made["ours"]
    assert stock.batches == ours.batches
    assert difference(stock.first, stock.final) > 1e-3
    assert are_equal(stock.final, ours.final), difference(stock.final, ours.final)


def test_the_command_trains_the_model(tmp_path: Path) -> None:
    """Train one step of eight pairs with `--model_config` and `--model`."""
    noise = Noise(tmp_path / "noise")
    words = [
        "-m", "open_clip_train.main", "--train-data", noise.urls, "--dataset-type", "webdataset",
        "--train-num-samples", "8", "--batch-size", "8", "--epochs", "1", "--workers", "1",
        "--precision", "fp32", "--logs", str(tmp_path), "--name", "one",
    ]  # fmt: skip
    write_config(tmp_path / "by-flag.json")
    flags = [*TRAIN_CLIP, "--model_config", "by-flag.json"]
    env = environment("installed")
    python(*flags, "--", *words, "--model", "by-flag", env=env, cwd=tmp_path)
    assert (tmp_path / "one" / "checkpoints" / "epoch_1.pt").is_file()
