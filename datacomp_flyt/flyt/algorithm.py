"""Algorithm 1 of FLYT: a scoring model and a reference model, trained together.

    s = q_φ(ζ),  w = softmax(s)          over the batch of all ranks
    θ+ = update(∇_θ ℓ_WCL(f_θ(z), w))    the reference model's step
    φ+ = update(∇_φ ℓ_DS(f_θ+(ẑ)))       the scoring model's, through dL_down/dw

Legend: B upstream batch, b rows of it on this rank, B' downstream batch, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datacomp_flyt.distributed.collectives import gather_rows, rows_of_rank, sum_over_ranks
from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.data import DownstreamBatch, UpstreamBatch
from datacomp_flyt.flyt.downstream_loss import (
    INITIAL_LOG_TEMPERATURE,
    CrossEntropy,
    DownstreamClipLoss,
)
from datacomp_flyt.flyt.lookahead_adamw import (
    ClipGradNorm,
    LookaheadAdamW,
    LookaheadOptimizer,
    LookaheadSGD,
    OptimizerState,
    decays,
)
from datacomp_flyt.flyt.metagradient import Downstream, Metagradient, weight_metagradient
from datacomp_flyt.flyt.precision import PRECISIONS, Tangent
from datacomp_flyt.flyt.prompts import Prompts
from datacomp_flyt.flyt.schedule import learning_rate
from datacomp_flyt.flyt.scoring_models import ScoringModel
from datacomp_flyt.flyt.towers import Embedding, Towers

_FIRST_GRADIENT_SCALE = 2.0**16
_MOST_SKIPPED = 100  # in a row; float16's scale needs about 20 to settle
_STEPS_TO_GROW = 2000  # finite steps after which float16's gradient scale doubles


@dataclass(frozen=True)
class AlgorithmConfig:
    """Parameters of Algorithm 1; the defaults of the flags are in `presets`."""

    upstream_batch_size: int
    downstream_batch_size: int
    num_steps: int
    warmup: int
    schedule: str
    reference_lr: float
    scoring_lr: float
    optimizer: str
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    scoring_weight_decay: float
    grad_clip_norm: float | None
    downstream_loss: str
    precision: str
    tangent: Tangent | None
    difference_step: float | None
    micro_batch_size: int | None
    freeze_reference: bool
    train_extractor: bool


class Algorithm:
    """The models with their optimizers, and one step of them.

    Where the public code differs from the paper this follows the paper: the reference model is
    updated unless it is frozen; a step that is not finite changes nothing at all, moments and
    learned temperature included; each optimizer advances once per step. The logit scale is kept in
    open_clip's [0, ln 100] (the public code's lower bound is 2; the paper names none).

    A frozen reference model still takes its moments along: with none, Adam's step is the sign of
    the gradient, from which hardly anything flows back. For the same reason the first step's dL/dw
    hangs on the gradient's entries near 0, which 16 bits do not know: in bf16 and amp the scoring
    model sits that step out, or its own moments would remember the noise for a hundred steps.
    """

    def __init__(
        self,
        config: AlgorithmConfig,
        reference: nn.Module,
        scoring: ScoringModel,
        extractor: nn.Module | None,
        prompts: Prompts,
    ) -> None:
        """
        Args:
            config: see there.
            reference: CLIP model f_θ, on the device to train on.
            scoring: q_φ, on the same device.
            extractor: CLIP model Ψ, whose embeddings of the upstream pairs are q_φ's features;
                None if the batches bring features along.
            prompts: of the downstream classes.
        """
        self.config, self.prompts, self.scoring = config, prompts, scoring
        precision = PRECISIONS[config.precision]
        self.tangent = config.tangent or precision.tangent
        self.towers = Towers(reference, config.micro_batch_size, precision.autocast)
        self.params = self.towers.params()
        self.device = next(iter(self.params.values())).device
        self.optimizer = _reference_optimizer(config)
        self.state = self.optimizer.init(self.params)
        self.extractor = (
            None
            if extractor is None
            else Towers(extractor, config.micro_batch_size, precision.autocast)
        )
        trained: list[tuple[str, nn.Parameter]] = list(scoring.named_parameters())
        if extractor is not None and config.train_extractor:
            trained += [(f"extractor.{n}", p) for n, p in extractor.named_parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in trained if decays(n, p)]},
            {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
        ]
        self.scoring_optimizer = torch.optim.AdamW(
            groups,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.scoring_weight_decay,
        )
        self.log_temperature = torch.tensor(INITIAL_LOG_TEMPERATURE, device=self.device)
        self.temperature_optimizer = torch.optim.AdamW(
            [self.log_temperature], betas=config.betas, eps=config.eps, weight_decay=0.0
        )
        self.scaled = precision.scale_gradients
        self.finite_steps = 0  # since the gradient scale last changed
        self.number_skipped = self.skipped_in_a_row = 0
        if self.scaled:
            self.towers.gradient_scale = _FIRST_GRADIENT_SCALE

    @property
    def learns_temperature(self) -> bool:
        """Whether the downstream loss has a temperature of its own (C.7)."""
        return self.config.downstream_loss != "cross_entropy"

    def step(
        self, number: int, upstream: UpstreamBatch, downstream: DownstreamBatch
    ) -> dict[str, float]:
        """One step on this rank's rows; what is worth logging comes back.

        Args:
            number: 0 is the first; decides learning rates and prompts.

        Raises:
            InputError: a hundred steps in a row were not finite.
        """
        upstream, downstream = upstream.to(self.device), downstream.to(self.device)
        config = self.config
        features, extracted = self._features(upstream)
        scores = self.scoring(features)
        log_weights = self._log_weights(scores.detach())
        rate = self._rate(config.reference_lr, number)
        found = weight_metagradient(
            self.towers,
            self.params,
            self.optimizer,
            self.state,
            rate,
            upstream.images,
            upstream.texts,
            log_weights,
            self._downstream(number, downstream),
            self.tangent,
            config.difference_step,
        )
        kept = found.finite and self._backward(found, scores, log_weights, features, extracted)
        if kept:
            self._keep(found, number, rate)
        self._count(kept)
        return self._metrics(found, log_weights, number)

    def _features(self, upstream: UpstreamBatch) -> tuple[Tensor, Embedding | None]:
        """ζ [b, k], and what takes gradients in it to the extractor, where that is trained."""
        if self.extractor is None:
            if upstream.features is None:
                raise InputError("the upstream data brings no features: give --scores_dir")
            return upstream.features, None
        params = self.extractor.params()
        if not self.config.train_extractor:
            features = self.extractor.features(params, upstream.images, upstream.texts)
            return torch.cat(features, 1), None
        embedding = self.extractor.embed(params, upstream.images, upstream.texts)
        return torch.cat(embedding.features, 1).requires_grad_(), embedding

    def _log_weights(self, scores: Tensor) -> Tensor:
        """log softmax over the batch of all ranks [B]."""
        gathered = gather_rows(scores, self.config.upstream_batch_size)
        dtype = next(iter(self.params.values())).dtype
        return gathered.double().log_softmax(0).to(dtype)

    def _downstream(self, number: int, batch: DownstreamBatch) -> Downstream:
        size, classes = self.config.downstream_batch_size, self.prompts.number
        labels = gather_rows(batch.labels, size)
        temperature = self.log_temperature.exp()
        if self.config.downstream_loss == "clip":
            texts = batch.captions
            if texts is None:
                texts = self.prompts.of_step(number, batch.labels.tolist()).to(self.device)
            loss: Any = DownstreamClipLoss()
            number_of_texts = size
        else:
            share = rows_of_rank(classes)
            texts = self.prompts.of_step(number, range(share.start, share.stop)).to(self.device)
            several = len(self.prompts.tasks) > 1
            loss = CrossEntropy(
                labels, self.prompts.class_tasks.to(self.device) if several else None
            )
            number_of_texts = classes
        if not self.learns_temperature:
            temperature = torch.ones_like(temperature)
        return Downstream(batch.images, texts, size, number_of_texts, loss, temperature)

    def _backward(
        self,
        found: Metagradient,
        scores: Tensor,
        log_weights: Tensor,
        features: Tensor,
        extracted: Embedding | None,
    ) -> bool:
        """∇_φ L_down = (∂w/∂φ)^T ∇_w L_down into `.grad`; whether all of it is finite."""
        own = log_weights[rows_of_rank(len(log_weights))].exp()
        pulled = own * found.weight_gradient
        total = pulled.sum()
        sum_over_ranks([total])
        self.scoring_optimizer.zero_grad()
        scores.backward((pulled - own * total).to(scores.dtype))
        if extracted is not None and self.extractor is not None:
            assert features.grad is not None
            halves = features.grad.chunk(2, 1)
            grads = extracted.pull_back((halves[0], halves[1]))
            for name, param in self.extractor.model.named_parameters():
                param.grad = grads.get(name)
        gradients = [
            param.grad
            for group in self.scoring_optimizer.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        sum_over_ranks(gradients)
        return bool(torch.stack([gradient.norm() for gradient in gradients]).isfinite().all())

    def _keep(self, found: Metagradient, number: int, rate: float) -> None:
        """Take the step: φ, θ with its moments, and τ_DS, each once."""
        for group in self.scoring_optimizer.param_groups:
            group["lr"] = self._rate(self.config.scoring_lr, number)
        if self.state.step or self.towers.autocast is None:
            self.scoring_optimizer.step()
        self.state = self.optimizer.next_state(found.grads, self.state)
        if not self.config.freeze_reference:
            self.params = found.params
            if "logit_scale" in self.params:
                self.params["logit_scale"].clamp_(0, math.log(100))
        if self.learns_temperature:
            self.log_temperature.grad = found.logit_scale_gradient * self.log_temperature.exp()
            self.temperature_optimizer.param_groups[0]["lr"] = rate
            self.temperature_optimizer.step()

    def _count(self, kept: bool) -> None:
        """Count skipped steps, and adapt float16's gradient scale."""
        self.number_skipped += not kept
        self.skipped_in_a_row = 0 if kept else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == _MOST_SKIPPED:
            raise InputError(
                f"{_MOST_SKIPPED} steps in a row were not finite: look at the weights of "
                "--reference_init, lower --reference_lr, or train in another --precision"
            )
        self.finite_steps = self.finite_steps + 1 if kept else 0
        if self.scaled and not kept:
            self.towers.gradient_scale /= 2
        elif self.scaled and self.finite_steps == _STEPS_TO_GROW:
            self.towers.gradient_scale *= 2
            self.finite_steps = 0

    def _rate(self, base: float, number: int) -> float:
        config = self.config
        return learning_rate(number, base, config.warmup, config.num_steps, config.schedule)

    def _metrics(self, found: Metagradient, log_weights: Tensor, number: int) -> dict[str, float]:
        weights = log_weights.exp()
        finite_logs = log_weights.clamp(min=torch.finfo(log_weights.dtype).min)
        metrics = {
            "upstream_loss": float(found.upstream_loss),
            "downstream_loss": float(found.downstream_loss),
            "weight_entropy": float(-(weights * finite_logs).sum()),
            "effective_batch_size": float(1 / (weights**2).sum()),
            "largest_weight": float(weights.max()),
            "reference_lr": self._rate(self.config.reference_lr, number),
            "scoring_lr": self._rate(self.config.scoring_lr, number),
            "skipped_steps": self.number_skipped,
        }
        if "logit_scale" in self.params:
            metrics["logit_scale"] = float(self.params["logit_scale"].exp())
        if self.learns_temperature:
            metrics["downstream_temperature"] = float(self.log_temperature.exp())
        if self.scaled:
            metrics["gradient_scale"] = self.towers.gradient_scale
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that a step depends on beside its data: tensors, numbers, lists and dicts."""
        return {
            "params": self.params,
            "first": self.state.first,
            "second": self.state.second,
            "optimizer_step": self.state.step,
            "scoring": self.scoring.state_dict(),
            "extractor": self._trained_extractor(),
            "scoring_optimizer": self.scoring_optimizer.state_dict(),
            "log_temperature": self.log_temperature,
            "temperature_optimizer": self.temperature_optimizer.state_dict(),
            "gradient_scale": self.towers.gradient_scale,
            "finite_steps": self.finite_steps,
            "number_skipped": self.number_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""

        def here(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}

        self.params = here(state["params"])
        self.state = OptimizerState(
            state["optimizer_step"], here(state["first"]), here(state["second"])
        )
        self.scoring.load_state_dict(state["scoring"])
        if state["extractor"] and self.extractor is not None:
            self.extractor.model.load_state_dict(state["extractor"])
        self.scoring_optimizer.load_state_dict(state["scoring_optimizer"])
        self.log_temperature.copy_(state["log_temperature"])
        self.temperature_optimizer.load_state_dict(state["temperature_optimizer"])
        self.towers.gradient_scale = state["gradient_scale"]
        self.finite_steps = state["finite_steps"]
        self.number_skipped = state["number_skipped"]

    def reference_state_dict(self) -> dict[str, Tensor]:
        """The reference model as open_clip reads it."""
        return {**self.towers.model.state_dict(), **self.params}

    def _trained_extractor(self) -> dict[str, Tensor]:
        if self.extractor is None or not self.config.train_extractor:
            return {}
        return dict(self.extractor.model.state_dict())


def _reference_optimizer(config: AlgorithmConfig) -> LookaheadOptimizer:
    optimizer: LookaheadOptimizer
    if config.optimizer == "sgd":
        optimizer = LookaheadSGD(config.betas[0], config.weight_decay)
    else:
        optimizer = LookaheadAdamW(config.betas, config.eps, config.weight_decay)
    if config.grad_clip_norm is not None:
        optimizer = ClipGradNorm(optimizer, config.grad_clip_norm)
    return optimizer
