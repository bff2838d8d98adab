"""Small inputs of Algorithm 1: models, fixed batches, and the settings of each case."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datacomp_flyt.flyt.algorithm import Algorithm
from datacomp_flyt.flyt.algorithm_config import AlgorithmConfig
from datacomp_flyt.flyt.data import DownstreamBatch, UpstreamBatch
from datacomp_flyt.flyt.scoring_models import GluHead, MixingModel, ScoringModel
from tests.oracles.flyt_inputs import (
    Downstream,
    Upstream,
    random_batches,
    random_texts,
    small_clip,
)

COLUMNS, MEANS, STDS = ("a", "b", "c"), (0.5, -2.0, 100.0), (0.1, 3.0, 20.0)
NUM_STEPS, WARMUP = 5, 2
RATES = {
    "reference": [5e-4, 1e-3, 1e-3],
    "scoring": [5e-3, 1e-2, 1e-2],
}  # learning rates of the first three steps
CONFIG = AlgorithmConfig(
    upstream_batch_size=8,
    downstream_batch_size=6,
    num_steps=NUM_STEPS,
    warmup=WARMUP,
    schedule="cosine",
    reference_lr=1e-3,
    scoring_lr=1e-2,
    optimizer="adamw",
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.2,
    scoring_weight_decay=0.3,
    grad_clip_norm=None,
    downstream_loss="cross_entropy",
    precision="fp32",
    tangent="exact",
    difference_step=None,
    micro_batch_size=None,
    freeze_reference=False,
    train_extractor=False,
)


@dataclass(frozen=True)
class FixedPrompts:
    """Random tokens that are different in each step."""

    class_counts: tuple[int, ...]

    @property
    def tasks(self) -> list[int]:
        return list(self.class_counts)

    @property
    def num_classes(self) -> int:
        return sum(self.class_counts)

    @property
    def class_tasks(self) -> Tensor:
        return torch.arange(len(self.tasks)).repeat_interleave(torch.tensor(self.class_counts))

    def of_step(self, step: int, classes: Any) -> Tensor:
        tokens = random_texts(self.num_classes, torch.Generator().manual_seed(500 + step))
        return tokens[list(classes)]


@dataclass(frozen=True)
class Case:
    """A case: its changes to CONFIG, a mixing model on raw columns."""

    changes: dict[str, Any] = field(default_factory=dict)
    class_counts: tuple[int, ...] = (5,)
    glu: bool = False
    extractor: bool = False
    captions: bool = False
    tolerance: float = 1e-9

    @property
    def config(self) -> AlgorithmConfig:
        return replace(CONFIG, **self.changes)


# the downstream temperature is always float32
TEMPERATURE = {"downstream_loss": "cross_entropy_temperature"}
CASES = {
    "M-FLYT": Case(),
    "M-FLYT, micro-batches": Case({"micro_batch_size": 3}),
    "CE with temperature": Case(TEMPERATURE, tolerance=1e-6),
    # eps is so large that Adam's step is proportional to the gradient
    "large eps": Case({**TEMPERATURE, "eps": 1.0, "reference_lr": 0.5}, tolerance=1e-6),
    "CLIP loss": Case({"downstream_loss": "clip"}, captions=True, tolerance=1e-6),
    "CLIP loss of prompts": Case({"downstream_loss": "clip"}, tolerance=1e-6),
    "two tasks": Case(class_counts=(2, 3)),
    "E-FLYT, features given": Case(glu=True),
    "E-FLYT": Case(TEMPERATURE, glu=True, extractor=True, tolerance=1e-6),
    "extractor trained": Case({"train_extractor": True}, glu=True, extractor=True),
    "only the extractor": Case(
        {"train_extractor": True, "freeze_reference": True}, glu=True, extractor=True
    ),
    "frozen": Case({"freeze_reference": True}),
    "SGD": Case({"optimizer": "sgd", "weight_decay": 0.0, "reference_lr": 1e-2}),
    "constant rates": Case({"schedule": "constant"}),
    "differences": Case({"tangent": "central"}, tolerance=1e-5),
}


def make_scoring(case: Case, dtype: torch.dtype = torch.float64) -> ScoringModel:
    torch.manual_seed(4)
    if case.glu:
        return GluHead(48).to(dtype)
    model = MixingModel(COLUMNS, (MEANS, STDS))
    model.layers.to(dtype)
    return model


def make_algorithm(case: Case, dtype: torch.dtype = torch.float64) -> Algorithm:
    extractor = small_clip(dtype, seed=5) if case.extractor else None
    prompts: Any = FixedPrompts(case.class_counts)
    return Algorithm(case.config, small_clip(dtype), make_scoring(case, dtype), extractor, prompts)


@dataclass(frozen=True)
class Batches:
    upstream: Upstream
    features: Tensor | None
    downstream: Downstream

    def local(self, captions: bool) -> tuple[UpstreamBatch, DownstreamBatch]:
        """Return batches like those of the loaders; without captions, the classes have prompts."""
        down = self.downstream
        return (
            UpstreamBatch(self.upstream.images, self.upstream.texts, self.features),
            DownstreamBatch(down.images, down.labels, down.captions if captions else None),
        )


def batches_of(case: Case, step: int, dtype: torch.dtype = torch.float64) -> Batches:
    upstream, _, downstream = random_batches(
        CONFIG.upstream_batch_size,
        CONFIG.downstream_batch_size,
        case.class_counts,
        seed=20 + step,
        dtype=dtype,
    )
    prompts = FixedPrompts(case.class_counts).of_step(step, range(sum(case.class_counts)))
    captions = downstream.captions if case.captions else prompts[downstream.labels]
    loss = "clip" if case.config.downstream_loss == "clip" else "cross_entropy"
    downstream = replace(downstream, prompts=prompts, captions=captions, loss=loss)
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(8, 48 if case.glu else 3, generator=generator, dtype=torch.float64)
    if case.glu:
        features = torch.cat([F.normalize(half) for half in features.chunk(2, 1)], 1)
    else:
        features = features * torch.tensor(STDS) + torch.tensor(MEANS)
    return Batches(upstream, None if case.extractor else features.to(dtype), downstream)
