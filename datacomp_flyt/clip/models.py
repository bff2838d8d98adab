"""Builds CLIP models of open_clip and loads their weights from tags or checkpoint files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import _MODEL_CONFIGS
from torch import Tensor, nn

from datacomp_flyt.errors import InputError, first_line
from datacomp_flyt.files.checkpoint_file import read_checkpoint

OWN_CONFIGS = Path(__file__).parent / "model_configs"
LARGEST_LOGIT_SCALE = 100.0
"""open_clip's trainer clips exp(logit_scale) at this value."""


@dataclass(frozen=True)
class ClipModel:
    """A model with the transforms of its inputs.

    Attributes:
        model: a model of open_clip, in float32.
        transform: training transform of a PIL image: random crop of 90 to 100%, normalised.
        tokenize: maps strings to tokens [n, L].
        eval_transform: evaluation transform of a PIL image: resized, centre crop, normalised.
    """

    model: nn.Module
    transform: Callable[[Any], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    eval_transform: Callable[[Any], Tensor]


def load_clip_model(
    name: str,
    init: str | None,
    flag: str | tuple[str, str],
    seed: int = 0,
    plain: bool = True,
) -> ClipModel:
    """Build a CLIP model and load its weights.

    OpenAI's weights give OpenAI's ViT-B/32 only with QuickGELU (`ViT-B-32-quickgelu`); the paper's
    runs load them into the `ViT-B-32` configuration, which computes with GELU.

    Args:
        name: a model of open_clip (`ViT-B-32`), or a JSON file with such a configuration.
        init: `random`; a weights tag of open_clip (`openai`); or a checkpoint file of open_clip's
            trainer or a bare state dict (.pt, .safetensors).
        flag: for messages, the stem of the flags (`reference` or `extractor`), or the flags of the
            model and of its weights (`--model`, `--checkpoint`).
        seed: the seed of random weights.
        plain: refuse models that are more than two towers and a logit scale (CoCa, SigLIP).

    Raises:
        InputError: the model or the weights do not exist, or the weights are of another
            architecture.
    """
    model_flag, init_flag = (f"--{flag}_model", f"--{flag}_init") if isinstance(flag, str) else flag
    if init is None:
        raise InputError(
            f"{init_flag} is missing: give the checkpoint of a CLIP model trained on the "
            "unfiltered pool (as the paper does), a weights tag of open_clip, or 'random'"
        )
    given, name = name, known_name(name, model_flag)
    tag = init if init in open_clip.list_pretrained_tags_by_model(name) else None
    path = Path(init)
    if tag is None and init != "random" and not path.exists():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(
            f"{init_flag} {init} is neither a file, nor 'random', nor a weights tag of {name} "
            f"(which are: {tags})"
        )
    with torch.random.fork_rng(devices=[]), _quiet_root_logger():
        torch.manual_seed(seed)
        try:
            model, transform, eval_transform = open_clip.create_model_and_transforms(
                name, pretrained=tag
            )
            tokenize = _tokenizer(name, model)
        except Exception as error:  # downloads and wrong configurations raise a dozen kinds
            what = (
                f"{model_flag} {given} makes no model"
                if tag is None
                else f"{init_flag} {init} cannot be had"
            )
            raise InputError(f"{what} ({first_line(error)})") from None
    if plain:
        _check_outputs(model, f"{model_flag} {name}")
    if init != "random" and tag is None:
        _load(model, path, f"{init_flag} {init}", name)
    return ClipModel(model, transform, tokenize, eval_transform)


def _tokenizer(name: str, model: nn.Module) -> Callable[[list[str]], Tensor]:
    """The model's tokenizer, at the model's context length.

    get_tokenizer of open_clip 2.16.1 makes 77 tokens for every model. CoCa is left as it is: its
    releases differ in whether the token that it appends itself is counted.
    """
    tokenize: Callable[..., Tensor] = open_clip.get_tokenizer(name)
    if type(model) not in _PLAIN:
        return tokenize
    length = open_clip.get_model_config(name)["text_cfg"].get("context_length", 77)
    return partial(tokenize, context_length=length)


def _check_outputs(model: nn.Module, what: str) -> None:
    """Raise InputError if a model is more than two towers and a logit scale."""
    # recognised by class and bias: releases before 2.20 cannot embed one input alone
    if type(model) not in _PLAIN or getattr(model, "logit_bias", None) is not None:
        raise InputError(
            f"{what} is more than an image tower, a text tower and a logit scale (CoCa and SigLIP "
            "are): the weighted CLIP loss has no place for that, so give a plain CLIP model"
        )


def read_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; see `read_checkpoint`.

    Of a scoring model in the layout of the published `flyt.pt`, only the feature extractor is read.

    Args:
        path: the checkpoint.
        what: its flag and path, for messages.

    Raises:
        InputError: the file cannot be read without running code from it.
    """
    tensors = read_checkpoint(path, what).tensors
    clip = {k.removeprefix(_CLIP): v for k, v in tensors.items() if k.startswith(_CLIP)}
    if not tensors:
        raise InputError(f"{what} holds no state dict: give a checkpoint of open_clip")
    return {name: torch.from_numpy(array) for name, array in (clip or tensors).items()}


def temperature_of(checkpoint: str | Path, flag: str) -> float:
    """Return the temperature that a CLIP model has learned, 1 / exp(logit_scale).

    The scale exp(logit_scale) is clipped at 100, as in open_clip's trainer.

    Args:
        checkpoint: a checkpoint of open_clip; see `read_state_dict`.
        flag: the flag that names it, for messages.

    Raises:
        InputError: the file cannot be read, or holds no logit scale that is a finite number.
    """
    scale = read_state_dict(Path(checkpoint), f"{flag} {checkpoint}").get("logit_scale")
    if scale is None:
        raise InputError(f"{flag} {checkpoint} has no logit_scale: give --temperature")
    value = float(scale) if scale.numel() == 1 else math.nan
    scale_factor = math.exp(min(value, LARGEST_LOGIT_SCALE)) if math.isfinite(value) else 0.0
    if not scale_factor:
        raise InputError(
            f"{flag} {checkpoint} has a logit_scale that is not one usable number: give "
            "--temperature"
        )
    return 1 / min(scale_factor, LARGEST_LOGIT_SCALE)


def _load(model: nn.Module, path: Path, what: str, name: str) -> None:
    wanted = model.state_dict()
    given = _as_the_model(read_state_dict(path, what), wanted)
    wrong = [
        f"{key} is {list(given[key].shape) if key in given else 'missing'}, wanted "
        f"{list(wanted[key].shape)}"
        for key in wanted
        if key not in given or given[key].shape != wanted[key].shape
    ] + [f"{key} is not known" for key in given if key not in wanted]
    if wrong and not any("." in key for key in given.keys() & wanted.keys()):
        raise InputError(
            f"{what} is not of open_clip's layout: it holds {', '.join([*given][:3])}, wanted "
            f"{', '.join([*wanted][:3])}; give a checkpoint of open_clip, which lies beside those "
            "of transformers as open_clip_pytorch_model.bin or open_clip_model.safetensors"
        )
    if wrong:
        raise InputError(
            f"{what} is not a {name}: {wrong[0]} ({len(wrong)} such tensors); name its own model"
        )
    model.load_state_dict(given)


def _as_the_model(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape tensors for another release, or class, of open_clip.

    CustomTextCLIP keeps its text tower under `text.`, and CLIP beside the logit scale. The scale
    has no dimension, or one of length 1. Some files hold constants beside the model.
    """
    if any(key.startswith(_TEXT) for key in given) and not any(k.startswith(_TEXT) for k in wanted):
        given = {key.removeprefix(_TEXT): value for key, value in given.items()}
    elif not any(key.startswith(_TEXT) for key in given):
        moved = {key.removeprefix(_TEXT): key for key in wanted}
        given = {moved.get(key, key): value for key, value in given.items()}
    for key in _SCALARS & given.keys() & wanted.keys():
        if given[key].numel() == 1:
            given[key] = given[key].reshape(wanted[key].shape)
    return {
        key: value
        for key, value in given.items()
        if key in wanted or key.rpartition(".")[2] not in _NOT_OF_THE_MODEL
    }


_PLAIN = (open_clip.CLIP, open_clip.CustomTextCLIP)
_CLIP, _TEXT = "clip_model.", "text."
_SCALARS = {"logit_scale", "logit_bias"}
# open_clip's older releases kept position ids and the mask, FLYT's trainer its downstream
# temperature, and OpenAI's archives what their models take
_NOT_OF_THE_MODEL = (
    "position_ids", "attn_mask", "downstream_logit_scale",
    "input_resolution", "context_length", "vocab_size",
)  # fmt: skip


def known_name(name: str, flag: str) -> str:
    """Return open_clip's name of a model, and register models of JSON files and of this package.

    Args:
        name: a model of open_clip or of this package, or a JSON file with a configuration.
        flag: the flag that names the model, for messages.

    Raises:
        InputError: there is no such model, or the file describes none.
    """
    path = OWN_CONFIGS / f"{name}.json" if not name.endswith(".json") else Path(name)
    if path.is_file():
        try:
            config = json.loads(path.read_text())
            missing = [k for k in ("embed_dim", "vision_cfg", "text_cfg") if k not in config]
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{flag} {name} is not JSON ({error})") from None
        if missing:
            raise InputError(f"{flag} {name} has no {missing[0]!r}: see open_clip's own")
        if path.stem not in open_clip.list_models():
            open_clip.add_model_config(path)
        elif open_clip.get_model_config(path.stem) != config:
            raise InputError(
                f"{flag} {name} has the name of another model of open_clip: rename the file"
            )
        return path.stem
    if name not in _MODEL_CONFIGS:
        raise InputError(
            f"{flag} {name} is no model of open_clip and no JSON file: see "
            "`python -c 'import open_clip; print(open_clip.list_models())'`"
        )
    return name


class _quiet_root_logger:
    """Silence the root logger, through which open_clip warns about random weights."""

    def __enter__(self) -> None:
        self._level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self._level)
