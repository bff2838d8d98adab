"""Tars of pictures with captions, CLIP models of milliseconds, and scorers of them."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.scorers.base.registry import option_names
from datacomp_flyt.scorers.base.scorer import ScoredShard, Scorer
from tests.flyt.runs import SMALL_MODEL, noise_image
from tests.flyt.tars import uid_of
from tests.tolerances import float_bound

WORDS = ("red", "blue", "big", "small", "cat", "dog", "bus", "tree", "sea", "hat")
SEED = 5  # of the weights


def sample(number: int, **changes: bytes | None) -> dict[str, bytes]:
    """Example `number`; a change to None removes the file."""
    rng = np.random.default_rng(number)
    made: dict[str, bytes | None] = {
        "jpg": noise_image(number, side=int(rng.integers(20, 60))),
        "txt": " ".join(rng.choice(WORDS, 4)).encode(),
        "json": json.dumps({"uid": uid_of(number)}).encode(),
    }
    return {name: content for name, content in (made | changes).items() if content is not None}


def png(width: int, height: int) -> bytes:
    """A picture of one colour and any size in few bytes."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


FEATURE_BOUND = float_bound(
    "float32",
    1,
    3 * 16**2  # the patch
    + 4 * 2 * 32  # mean and variance of each norm
    + 3 * 32 + 17  # queries with keys, values of at most 17 tokens, the output
    + 5 * 32  # the perceptron's two layers
    + 32 + 16 + 16,  # the projection, the length, and the product of image and text
)  # fmt: skip
"""Error of a unit feature of the small model, or of a cosine: terms on the longest path to it."""


def small_model(folder: Path, name: str = "flyt-test-small", **changes: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(SMALL_MODEL | changes))
    return path


def small_weights(model: Path, seed: int = SEED) -> dict[str, Tensor]:
    return load_clip_model(str(model), "random", "reference", seed).model.state_dict()


def checkpoint(path: Path, state: dict[str, Tensor], prefix: str = "") -> Path:
    torch.save({f"{prefix}{name}": value for name, value in state.items()}, path)
    return path


def scorer_of(kind: type[Scorer], *words: object, **flags: Any) -> Any:
    """Make a scorer of its own flags on a command line, and of other options."""
    parser = argparse.ArgumentParser()
    kind.add_arguments(parser)
    args = vars(parser.parse_args(list(map(str, words)))) | flags
    return kind(**{name: args[name] for name in option_names(kind) if name in args})


def score(scorer: Scorer, shard: object, device: str = "cpu") -> ScoredShard:
    scorer.load(device)
    return scorer.score(str(shard), {})


def features_one_by_one(
    model: Path, state: dict[str, Tensor], samples: Sequence[dict[str, bytes]]
) -> tuple[np.ndarray, np.ndarray]:
    """Unit image and text features in float64, an example at a time, by open_clip alone."""
    clip, _, preprocess = open_clip.create_model_and_transforms(model.stem)
    clip.load_state_dict(state)
    clip.double().eval()
    tokenize = partial(
        open_clip.get_tokenizer(model.stem),  # of 77 tokens in 2.16.1, whatever the model's length
        context_length=open_clip.get_model_config(model.stem)["text_cfg"]["context_length"],
    )
    images, texts = [], []
    for each in samples:
        image = preprocess(Image.open(io.BytesIO(each["jpg"])).convert("RGB"))
        with torch.no_grad():
            images.append(clip.encode_image(image.double()[None])[0].numpy())
            texts.append(clip.encode_text(tokenize([each["txt"].decode()]))[0].numpy())
    img, txt = np.array(images), np.array(texts)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (img, txt))  # type: ignore
