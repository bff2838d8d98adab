"""Supported trainers, and the messages about those that are not supported."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("open_clip")
import open_clip
from torch import nn

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook import install_hook
from datacomp_flyt.open_clip_hook.preconditions import check_loss
from datacomp_flyt.open_clip_hook.run_script import alias_packages
from datacomp_flyt.open_clip_hook.trainer import find_trainer, package_of
from tests.open_clip_hook.made import write_table

TRAINER = find_trainer()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_table(tmp_path / "w.parquet", {"uid": [1], "w": [1.0]})


def test_the_installed_trainer() -> None:
    assert TRAINER.main.__name__ == f"{TRAINER.package}.main"
    assert TRAINER.loss_maker in ("create_loss", "create_task")


@pytest.mark.parametrize(
    ("version", "package"),
    [
        ("2.16.1", "training"),
        ("2.24.0", "training"),
        ("2.26.1", "open_clip_train"),
        ("3.3.0", "open_clip_train"),
        ("4.2.0.dev0", "open_clip_train"),
    ],
)
def test_names_of_the_trainer(version: str, package: str) -> None:
    assert package_of(version) == package


@pytest.mark.parametrize(
    "version", ["2.16.0", "3.3.1", "4.2.0", "3.3.0.post1", "of unknown version"]
)
def test_an_unknown_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "__version__", version, raising=False)
    with pytest.raises(InputError, match=f"open_clip_torch {version} is not supported by the hook"):
        find_trainer()
    if package_of(version) == TRAINER.package:
        assert find_trainer(allow_unknown_version=True).version == version


@pytest.mark.parametrize("version", ["2.16.1", "3.3.0", "2.20.0", "4.2.0.dev0"])
def test_known_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "__version__", version, raising=False)
    monkeypatch.setattr(
        "datacomp_flyt.open_clip_hook.trainer.package_of", lambda version: TRAINER.package
    )
    assert find_trainer().version == version


def test_a_missing_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datacomp_flyt.open_clip_hook.trainer.package_of", lambda version: "tests")
    with pytest.raises(InputError, match=r"is missing \(tests.main\): pip install"):
        find_trainer()


@pytest.mark.parametrize(
    ("module", "name"),
    [("data", "tarfile_to_samples_nothrow"), ("main", "get_data"), ("main", TRAINER.loss_maker)],
)
def test_missing_and_changed_functions(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host: ModuleType = getattr(TRAINER, module)

    def other(args: object, extra: object) -> None:
        raise AssertionError

    other.__name__ = name
    monkeypatch.setattr(host, name, other)
    with pytest.raises(InputError, match=rf"{name} of open_clip_torch .* takes \(args, extra\)"):
        find_trainer()
    monkeypatch.delattr(host, name)
    if name != "create_task":  # a trainer without it is an older one
        with pytest.raises(InputError, match=f"has no function {name}"):
            find_trainer()


def test_a_function_that_main_does_not_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(TRAINER.main, "main", main)
    with pytest.raises(InputError, match=r"main of open_clip_torch .* does not call get_data"):
        find_trainer()


def test_install_and_remove(weights: Path) -> None:
    names = ("tarfile_to_samples_nothrow", "get_data", TRAINER.loss_maker)

    def current() -> list[Any]:
        hosts = (TRAINER.data, TRAINER.main, TRAINER.main)
        return [getattr(host, name) for host, name in zip(hosts, names, strict=True)]

    before = current()
    hook = install_hook(weights=weights)
    try:
        assert all(ours is not theirs for ours, theirs in zip(current(), before, strict=True))
        assert not hook.was_used
        with pytest.raises(InputError, match="the hook is already installed in"):
            install_hook(weights=weights)
    finally:
        hook.remove()
    assert all(now is then for now, then in zip(current(), before, strict=True))


def test_aliases_are_the_same_modules() -> None:
    other = {"open_clip_train": "training", "training": "open_clip_train"}[TRAINER.package]
    before = dict(sys.modules)
    try:
        alias_packages(TRAINER.package)
        assert sys.modules[f"{other}.main"] is TRAINER.main
        assert sys.modules[f"{other}.distributed"] is sys.modules[f"{TRAINER.package}.distributed"]
    finally:
        sys.modules.clear()
        sys.modules.update(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to do: give --weights"),
        ({"weights": "w", "scores": "s"}, "--weights and --scores exclude each other"),
        ({"subset": "s.npy", "column": "w"}, "--column is for --weights or --scores"),
        ({"distinct_in_batch": True, "missing_value": 1.0}, "--missing_value is for --weights"),
        ({"subset": "no.npy"}, "no.npy cannot be read as .npy"),
        ({"scoring_model": "no.pt"}, "no.pt is not a file"),
        ({"model_config": "no.json"}, "--model_config no.json is no model of open_clip"),
        ({"model_config": "ViT-no"}, "--model_config ViT-no is no model of open_clip"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        install_hook(**settings)


class OtherLoss(nn.Module):
    pass


@pytest.mark.parametrize(
    ("stock", "args", "message"),
    [
        (OtherLoss(), {}, "this training's loss is OtherLoss, and the weighted loss can replace"),
        (open_clip.CoCaLoss(1.0, 1.0), {}, "loss is CoCaLoss"),
        (
            open_clip.ClipLoss(local_loss=True, world_size=2),
            {},
            "--local-loss without --gather-with-grad",
        ),
        (
            open_clip.ClipLoss(),
            {"torchcompile": True, "torchcompile_strategy": "step"},
            "--torchcompile-strategy step compiles the loss",
        ),
    ],
)
def test_losses_that_are_refused(stock: nn.Module, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_loss(Namespace(**args), stock, TRAINER)


def test_a_changed_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_loss(Namespace(), open_clip.ClipLoss(), TRAINER)
    forward = open_clip.ClipLoss.forward

    def smoothed(
        self: Any,
        image_features: Any,
        text_features: Any,
        logit_scale: Any,
        logit_bias: Any = None,
        output_dict: bool = False,
    ) -> Any:
        return 1.01 * forward(self, image_features, text_features, logit_scale)

    smoothed.__name__ = "forward"
    monkeypatch.setattr(open_clip.ClipLoss, "forward", smoothed)
    with pytest.raises(InputError, match="it is another loss"):
        check_loss(Namespace(), open_clip.ClipLoss(), TRAINER)


def test_data_that_main_did_not_open_are_refused(weights: Path) -> None:
    """A user's script may call the reader itself, but captions would have uids prepended."""
    hook = install_hook(weights=weights)
    try:
        with pytest.raises(InputError, match="were not opened by the trainer's main"):
            TRAINER.data.tarfile_to_samples_nothrow(iter([]))
    finally:
        hook.remove()
        hook.remove()
    assert list(TRAINER.data.tarfile_to_samples_nothrow(iter([]))) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dataset_type": "csv"}, "--dataset-type csv is no webdataset"),
        ({"dataset_type": "synthetic", "train_data": None}, "--dataset-type synthetic is no webd"),
        ({"use_naflex": True}, "--use-naflex: the hook does not support such batches"),
        ({"json_text_key": "caption"}, "--json-text-key"),
        ({"text_key": "caption"}, "--text-key caption: the hook supports captions in .txt only"),
    ],
)
def test_data_that_is_refused(args: dict[str, Any], message: str, weights: Path) -> None:
    hook = install_hook(weights=weights)
    try:
        given = {"dataset_type": "webdataset", "train_data": "0.tar", **args}
        with pytest.raises(InputError, match=message):
            hook._get_data(Namespace(**given), None)
        assert not hook.was_used
    finally:
        hook.remove()
