"""DFN scores against open_clip used by hand, one example at a time in float64."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from datacomp_flyt.clip import encoder as clip_encoder
from datacomp_flyt.clip.encoder import ClipEncoder, activation_of
from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.scorers.dfn import Dfn
from tests.conftest import REPOSITORY, refusal
from tests.flyt.runs import SMALL_MODEL
from tests.flyt.tars import uid_of, write_tar
from tests.oracles.selection import parse_uid, uid_array
from tests.scorers.base.image_tars import (
    FEATURE_BOUND,
    SEED,
    checkpoint,
    features_one_by_one,
    sample,
    score,
    scorer_of,
    small_model,
    small_weights,
)

ROWS = 11


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def weights(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "DFN-FT.pt", small_weights(model))


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [sample(number) for number in range(ROWS)]
    return write_tar(tmp_path_factory.mktemp("tars") / "00000000.tar", rows)


@pytest.fixture(scope="module")
def cosines(model: Path) -> np.ndarray:
    rows = [sample(number) for number in range(ROWS)]
    img, txt = features_one_by_one(model, small_weights(model), rows)
    return np.sum(img * txt, 1)


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_like_one_by_one_in_float64(
    model: Path, weights: Path, tar: Path, cosines: np.ndarray, batch_size: int
) -> None:
    scorer = scorer_of(Dfn, "--model", model, "--checkpoint", weights, "--batch_size", batch_size)
    found = score(scorer, tar)
    assert scorer.columns == ("DFN-FT",)
    assert found.values.shape == (ROWS, 1)
    assert np.abs(found.values[:, 0] - cosines).max() < FEATURE_BOUND
    assert np.ptp(cosines) > 0.01  # or the comparison says nothing
    assert np.array_equal(found.uids, uid_array([parse_uid(uid_of(n)) for n in range(ROWS)]))
    assert not found.counts


def test_bfloat16_is_near(model: Path, weights: Path, tar: Path, cosines: np.ndarray) -> None:
    scorer = scorer_of(Dfn, "--model", model, "--checkpoint", weights, precision="bf16")
    found = score(scorer, tar).values[:, 0]
    assert 1e-6 < np.abs(found - cosines).max() < 0.03


def test_neighbours_that_cannot_be_scored_change_nothing_but_rounding(
    model: Path, weights: Path, tmp_path: Path, cosines: np.ndarray
) -> None:
    rows = [sample(number) for number in range(ROWS)]
    rows[0]["jpg"] = b"no image"
    del rows[5]["txt"]
    tar = write_tar(tmp_path / "a.tar", rows)
    scorer = scorer_of(Dfn, "--model", model, "--checkpoint", weights, "--batch_size", 3)
    found = score(scorer, tar).values[:, 0]
    assert np.flatnonzero(np.isnan(found)).tolist() == [0, 5]
    kept = np.isfinite(found)
    assert np.abs(found - cosines)[kept].max() < FEATURE_BOUND


def test_the_same_bytes_each_time(model: Path, weights: Path, tar: Path) -> None:
    words = ("--model", model, "--checkpoint", weights, "--batch_size", 4)
    one = score(scorer_of(Dfn, *words, "--decode_threads", 1), tar)
    other = score(scorer_of(Dfn, *words, "--decode_threads", 3), tar)
    assert one.values.tobytes() == other.values.tobytes()


def test_models_are_in_evaluation_mode(tmp_path: Path, tar: Path) -> None:
    """In training this one sees a random half of the patches."""
    vision = {**SMALL_MODEL["vision_cfg"], "image_size": 64, "patch_dropout": 0.5}
    path = small_model(tmp_path, "flyt-test-patches", vision_cfg=vision)
    state = small_weights(path)
    words = ("--model", path, "--checkpoint", checkpoint(tmp_path / "c.pt", state))
    found = score(scorer_of(Dfn, *words), tar).values[:, 0]
    img, txt = features_one_by_one(path, state, [sample(number) for number in range(ROWS)])
    assert np.abs(found - np.sum(img * txt, 1)).max() < FEATURE_BOUND


def test_the_demo_pool(model: Path, weights: Path) -> None:
    """Tars with emojis: modes and sizes that no test made."""
    shard = REPOSITORY / "datacomp_flyt" / "demo" / "pool" / "shards" / "00000000.tar"
    found = score(scorer_of(Dfn, "--model", model, "--checkpoint", weights), shard)
    assert len(found.uids) == 105
    assert np.isfinite(found.values).all()
    assert (np.abs(found.values) <= 1).all()


def test_layouts_of_checkpoints(
    model: Path, tar: Path, cosines: np.ndarray, tmp_path: Path
) -> None:
    state = small_weights(model)
    of_trainer = tmp_path / "epoch_1.pt"
    torch.save(
        {"epoch": 1, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}},
        of_trainer,
    )
    for path in (of_trainer, checkpoint(tmp_path / "flyt.pt", state, "clip_model.")):
        found = score(scorer_of(Dfn, "--model", model, "--checkpoint", path), tar)
        assert np.abs(found.values[:, 0] - cosines).max() < FEATURE_BOUND


def test_the_other_column(model: Path, weights: Path) -> None:
    scorer = scorer_of(Dfn, "--model", model, "--checkpoint", weights, column="DFN-Base")
    assert scorer.columns == ("DFN-Base",)


def test_settings_tell_weights_and_precision_apart(
    model: Path, weights: Path, tmp_path: Path
) -> None:
    def settings(*words: object, **flags: str) -> str:
        scorer = scorer_of(Dfn, "--model", model, "--checkpoint", weights, *words, **flags)
        return json.dumps(scorer.settings, sort_keys=True)

    other = checkpoint(tmp_path / "c.pt", small_weights(model, seed=6))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(weights.read_bytes())
    assert settings() == settings("--checkpoint", copy)
    assert settings() == settings("--batch_size", 7)
    assert settings() != settings("--checkpoint", other)
    assert settings() != settings(precision="bf16")


def test_wrong_flags(model: Path, weights: Path, tmp_path: Path) -> None:
    assert "--checkpoint is missing" in refusal(scorer_of, Dfn, "--model", model)
    message = refusal(scorer_of, Dfn, "--model", model, "--checkpoint", tmp_path / "none.pt")
    assert f"--checkpoint {tmp_path / 'none.pt'}" in message
    message = refusal(scorer_of, Dfn, "--model", "ViT-B-33", "--checkpoint", weights)
    assert "--model ViT-B-33" in message
    message = refusal(scorer_of, Dfn, "--model", "flyt-tiny", "--checkpoint", weights)
    assert f"--checkpoint {weights} is not a flyt-tiny" in message
    (tmp_path / "noise.pt").write_bytes(b"noise" * 99)
    message = refusal(scorer_of, Dfn, "--model", model, "--checkpoint", tmp_path / "noise.pt")
    assert f"--checkpoint {tmp_path / 'noise.pt'}" in message


def test_activations(tmp_path: Path, model: Path) -> None:
    quick = small_model(tmp_path, "flyt-test-quick", quick_gelu=True)
    found = {
        path.stem: activation_of(ClipEncoder(str(path), "random").load("cpu").model)
        for path in (model, quick)
    }
    assert found == {"flyt-test-small": "GELU", "flyt-test-quick": "QuickGELU"}


@pytest.mark.parametrize("quick_model", [False, True])
@pytest.mark.parametrize("quick_weights", [False, True])
def test_a_note_on_weights_of_the_other_activation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quick_model: bool,
    quick_weights: bool,
) -> None:
    """As `--model ViT-B-32 --checkpoint openai`, whose weights are not here."""
    name = f"flyt-test-{'quick' if quick_model else 'small'}"
    path = small_model(tmp_path, name, **({"quick_gelu": True} if quick_model else {}))
    encoder = ClipEncoder(str(path), "random").load("cpu")
    monkeypatch.setattr(ClipEncoder, "load", lambda self, device: encoder)
    tags = {name: {"openai": {"quick_gelu": True} if quick_weights else {}}}
    if not quick_weights:  # a release that knows no activations knows OpenAI's
        tags[name] = {"laion": {}}
    monkeypatch.setattr(clip_encoder.open_clip.pretrained, "_PRETRAINED", tags)
    _, settings = ClipEncoder(name, next(iter(tags[name]))).check()
    note = capsys.readouterr().err
    assert settings["activation"] == ("QuickGELU" if quick_model else "GELU")
    assert ("note: " in note) == (quick_model != quick_weights)
    if quick_weights and not quick_model:
        assert f"{name}-quickgelu" in note
        assert "--checkpoint" in note


def test_open_clips_own_weights_of_vit_b_32() -> None:
    """open_clip describes the configurations and OpenAI's tag as the note says."""
    assert open_clip.pretrained.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    assert ClipEncoder("ViT-B-32", "openai")._trained_with() == "QuickGELU"
    assert not open_clip.get_model_config("ViT-B-32").get("quick_gelu", False)
    assert open_clip.get_model_config("ViT-B-32-quickgelu")["quick_gelu"]


def test_the_commands_of_the_page_are_the_trainers() -> None:
    """docs/dfn.md: flags that open_clip's trainer knows, with DataComp's medium configuration."""
    params = pytest.importorskip("open_clip_train.params")
    text = (REPOSITORY / "docs" / "dfn.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "-m open_clip_train.main " in line]
    base, fine = (params.parse_args(shlex.split(line.split("main ", 1)[1])) for line in lines)
    for args, samples, steps in ((base, 128_000_000, 31_256), (fine, 400_000, 98)):
        assert (args.model, args.lr, args.warmup, args.wd) == ("ViT-B-32", 5e-4, 500, 0.2)
        assert (args.beta1, args.beta2, args.eps) == (0.9, 0.98, 1e-6)
        assert (args.precision, args.lr_scheduler, args.batch_size) == ("amp", "cosine", 4096 // 8)
        assert args.train_num_samples == samples
        assert args.dataset_resampled
        each = math.ceil(math.ceil(samples / 4096) / args.workers)
        assert each * args.workers == steps
    assert base.pretrained == "openai"
    assert fine.pretrained == f"{base.logs}/{base.name}/checkpoints/epoch_{base.epochs}.pt"
    ours = [line.split("score ", 1)[1] for line in text.splitlines() if "--scorer dfn" in line]
    parser = argparse.ArgumentParser()
    for flag in ("--scorer", "--shards_dir", "--scores_dir", "--column"):
        parser.add_argument(flag)
    Dfn.add_arguments(parser)
    scored = [parser.parse_args(shlex.split(line)) for line in ours]
    assert [args.column for args in scored] == [None, "DFN-Base"]
    assert scored[0].checkpoint.endswith("dfn_ft/checkpoints/epoch_1.pt")


def test_models_with_more_than_two_towers_and_a_scale(tmp_path: Path, tar: Path) -> None:
    """SigLIP's have a bias: of no use to a weighted CLIP loss, and no matter to a cosine."""
    model = small_model(tmp_path, "flyt-test-biased", init_logit_bias=-10.0)
    state = load_clip_model(str(model), "random", "reference", SEED, plain=False).model.state_dict()
    scorer = scorer_of(Dfn, "--model", model, "--checkpoint", checkpoint(tmp_path / "b.pt", state))
    rows = [sample(number) for number in range(ROWS)]
    img, txt = features_one_by_one(model, state, rows)
    assert np.abs(score(scorer, tar).values[:, 0] - np.sum(img * txt, 1)).max() < FEATURE_BOUND
