"""Algorithm 1 of FLYT (section 3.2): train a scoring model together with a reference model.

    s = q_φ(ζ),  w = softmax(s)          scores and weights of the batch of all ranks
    θ⁺ = update(∇_θ ℓ_WCL(f_θ(z), w))    step of the reference model (Eq. 3)
    φ⁺ = update(∇_φ ℓ_DS(f_θ⁺(ẑ)))       step of the scoring model (Eq. 2), through ∂L_down/∂w

`metagradient` computes θ⁺ and ∂L_down/∂w. This module adds the softmax and its Jacobian, the
optimizers, and what is logged and saved.

Legend: B upstream batch, b rows of it on this rank, B' downstream batch, K classes, ζ [b, F]
features of the upstream rows, φ parameters of the scoring model, θ of the reference model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from datacomp_flyt.distributed.collectives import gather_rows, rows_of_rank, sum_over_ranks
from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.algorithm_config import AlgorithmConfig, reference_optimizer
from datacomp_flyt.flyt.data import DownstreamBatch, UpstreamBatch
from datacomp_flyt.flyt.downstream_loss import (
    INITIAL_LOG_TEMPERATURE,
    CrossEntropy,
    DownstreamClipLoss,
)
from datacomp_flyt.flyt.lookahead_adamw import OptimizerState, decays
from datacomp_flyt.flyt.metagradient import Downstream, Metagradient, weight_metagradient
from datacomp_flyt.flyt.precision import PRECISIONS
from datacomp_flyt.flyt.prompts import Prompts
from datacomp_flyt.flyt.schedule import learning_rate
from datacomp_flyt.flyt.scoring_models import ScoringModel
from datacomp_flyt.flyt.towers import Embedding, Towers

_FIRST_GRADIENT_SCALE = 2.0**16
_MOST_SKIPPED = 100  # steps in a row; float16's gradient scale settles within about 20
_STEPS_TO_GROW = 2000  # finite steps after which float16's gradient scale doubles


class Algorithm:
    """The models with their optimizers; `step` trains them on one pair of batches.

    Where FLYT's public code differs from the paper, this class follows the paper:

    - The reference model is updated, unless it is frozen.
    - A step with a value that is not finite changes nothing, not even the optimizers' moments or
      the learned temperature.
    - Each optimizer advances once per step.

    The paper gives no bounds for the logit scale. Its log is clamped to [0, ln 100], as open_clip
    does; the public code clamps it to [2, ln 100].

    The optimizer state of the reference model advances even if the model is frozen. Without
    moments, Adam's update is sign(g), whose derivative with respect to g is almost 0.

    The first step has no moments yet, so its ∂L_down/∂w depends on the entries of g near 0. 16-bit
    arithmetic does not resolve these. In bf16 and amp the scoring model therefore skips the first
    step; otherwise its optimizer's moments would hold that noise for about a hundred steps.
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
            config: parameters of the algorithm.
            reference: CLIP model f_θ, on the device to train on.
            scoring: scoring model q_φ, on the same device.
            extractor: CLIP model Ψ, whose embeddings of the upstream pairs are the features ζ;
                None if the batches contain features.
            prompts: prompts of the downstream classes.
        """
        self.config, self.prompts, self.scoring = config, prompts, scoring
        precision = PRECISIONS[config.precision]
        self.tangent = config.tangent or precision.tangent
        self.towers = Towers(reference, config.micro_batch_size, precision.autocast)
        self.params = self.towers.params()
        self.device = next(iter(self.params.values())).device
        self.optimizer = reference_optimizer(config)
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
        self.num_skipped = self.skipped_in_a_row = 0
        if self.scaled:
            self.towers.gradient_scale = _FIRST_GRADIENT_SCALE

    @property
    def learns_temperature(self) -> bool:
        """True if the temperature of the downstream loss is learned (Appendix C.7)."""
        return self.config.downstream_loss != "cross_entropy"

    def step(
        self, step: int, upstream: UpstreamBatch, downstream: DownstreamBatch
    ) -> dict[str, float]:
        """Train on one upstream and one downstream batch.

        Args:
            step: index of the step, from 0, which determines the learning rates and the prompts.
            upstream, downstream: rows of this rank.

        Returns:
            Metrics by name, for the log.

        Raises:
            InputError: a hundred steps in a row were not finite.
        """
        upstream, downstream = upstream.to(self.device), downstream.to(self.device)
        config = self.config
        features, extracted = self._features(upstream)
        scores = self.scoring(features)
        log_weights = self._log_weights(scores.detach())
        reference_lr = self._learning_rate(config.reference_lr, step)
        metagradient = weight_metagradient(
            self.towers,
            self.params,
            optimizer=self.optimizer,
            state=self.state,
            lr=reference_lr,
            images=upstream.images,
            texts=upstream.texts,
            log_weights=log_weights,
            downstream=self._downstream(step, downstream),
            tangent=self.tangent,
            difference_step=config.difference_step,
        )
        kept = metagradient.finite and self._backward(
            metagradient, scores, log_weights, features, extracted
        )
        if kept:
            self._keep(metagradient, step, reference_lr)
        self._count(kept)
        return self._metrics(metagradient, log_weights, step)

    def _features(self, upstream: UpstreamBatch) -> tuple[Tensor, Embedding | None]:
        """Return ζ [b, F], and the extractor's embedding if the extractor is trained."""
        if self.extractor is None:
            if upstream.features is None:
                raise InputError("the upstream data has no features: give --scores_dir")
            return upstream.features, None
        params = self.extractor.params()
        if not self.config.train_extractor:
            features = self.extractor.features(params, upstream.images, upstream.texts)
            return torch.cat(features, 1), None
        embedding = self.extractor.embed(params, upstream.images, upstream.texts)
        return torch.cat(embedding.features, 1).requires_grad_(), embedding

    def _log_weights(self, scores: Tensor) -> Tensor:
        """Compute log w, the log softmax of the scores of all ranks [B]."""
        gathered = gather_rows(scores, self.config.upstream_batch_size)
        dtype = next(iter(self.params.values())).dtype
        return gathered.double().log_softmax(0).to(dtype)

    def _downstream(self, step: int, batch: DownstreamBatch) -> Downstream:
        """Add the texts and the loss to a downstream batch."""
        size, num_classes = self.config.downstream_batch_size, self.prompts.num_classes
        labels = gather_rows(batch.labels, size)
        temperature = self.log_temperature.exp()
        if self.config.downstream_loss == "clip":
            texts = batch.captions
            if texts is None:
                texts = self.prompts.of_step(step, batch.labels.tolist()).to(self.device)
            loss: Any = DownstreamClipLoss()
            num_texts = size
        else:
            share = rows_of_rank(num_classes)
            texts = self.prompts.of_step(step, range(share.start, share.stop)).to(self.device)
            several_tasks = len(self.prompts.tasks) > 1
            loss = CrossEntropy(
                labels, self.prompts.class_tasks.to(self.device) if several_tasks else None
            )
            num_texts = num_classes
        if not self.learns_temperature:
            temperature = torch.ones_like(temperature)
        return Downstream(batch.images, texts, size, num_texts, loss, temperature)

    def _backward(
        self,
        metagradient: Metagradient,
        scores: Tensor,
        log_weights: Tensor,
        features: Tensor,
        extracted: Embedding | None,
    ) -> bool:
        """Set `.grad` of the trained parameters φ to ∇_φ L_down (Appendix A).

        By the chain rule ∇_φ L_down = (∂s/∂φ)^T ∇_s L_down. The Jacobian of the softmax gives
        ∂L_down/∂s_i = w_i (r_i - <w, r>) with r = ∇_w L_down.

        Returns:
            whether the gradient is finite; the same on all ranks.
        """
        weights = log_weights[rows_of_rank(len(log_weights))].exp()
        pulled = weights * metagradient.weight_gradient
        total = pulled.sum()
        sum_over_ranks([total])
        self.scoring_optimizer.zero_grad()
        scores.backward((pulled - weights * total).to(scores.dtype))
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

    def _keep(self, metagradient: Metagradient, step: int, reference_lr: float) -> None:
        """Update φ, θ and the learned temperature, with the states of their optimizers."""
        for group in self.scoring_optimizer.param_groups:
            group["lr"] = self._learning_rate(self.config.scoring_lr, step)
        # under autocast the gradient of the first step is noise; see the docstring of the class
        if self.state.step or self.towers.autocast is None:
            self.scoring_optimizer.step()
        self.state = self.optimizer.next_state(metagradient.grads, self.state)
        if not self.config.freeze_reference:
            self.params = metagradient.params
            if "logit_scale" in self.params:
                self.params["logit_scale"].clamp_(0, math.log(100))
        if self.learns_temperature:
            slope = metagradient.logit_scale_gradient * self.log_temperature.exp()
            self.log_temperature.grad = slope
            self.temperature_optimizer.param_groups[0]["lr"] = reference_lr
            self.temperature_optimizer.step()

    def _count(self, kept: bool) -> None:
        """Count the steps that are skipped, and adapt float16's gradient scale."""
        self.num_skipped += not kept
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

    def _learning_rate(self, base: float, step: int) -> float:
        config = self.config
        return learning_rate(step, base, config.warmup, config.num_steps, config.schedule)

    def _metrics(
        self, metagradient: Metagradient, log_weights: Tensor, step: int
    ) -> dict[str, float]:
        weights = log_weights.exp()
        finite_logs = log_weights.clamp(min=torch.finfo(log_weights.dtype).min)
        metrics = {
            "upstream_loss": float(metagradient.upstream_loss),
            "downstream_loss": float(metagradient.downstream_loss),
            "weight_entropy": float(-(weights * finite_logs).sum()),
            "effective_batch_size": float(1 / (weights**2).sum()),
            "largest_weight": float(weights.max()),
            "reference_lr": self._learning_rate(self.config.reference_lr, step),
            "scoring_lr": self._learning_rate(self.config.scoring_lr, step),
            "skipped_steps": self.num_skipped,
        }
        if "logit_scale" in self.params:
            metrics["logit_scale"] = float(self.params["logit_scale"].exp())
        if self.learns_temperature:
            metrics["downstream_temperature"] = float(self.log_temperature.exp())
        if self.scaled:
            metrics["gradient_scale"] = self.towers.gradient_scale
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return all state but that of the data, as tensors, numbers, lists and dicts."""
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
            "number_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""

        def on_device(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}

        self.params = on_device(state["params"])
        self.state = OptimizerState(
            state["optimizer_step"], on_device(state["first"]), on_device(state["second"])
        )
        self.scoring.load_state_dict(state["scoring"])
        if state["extractor"] and self.extractor is not None:
            self.extractor.model.load_state_dict(state["extractor"])
        self.scoring_optimizer.load_state_dict(state["scoring_optimizer"])
        self.log_temperature.copy_(state["log_temperature"])
        self.temperature_optimizer.load_state_dict(state["temperature_optimizer"])
        self.towers.gradient_scale = state["gradient_scale"]
        self.finite_steps = state["finite_steps"]
        self.num_skipped = state["number_skipped"]

    def reference_state_dict(self) -> dict[str, Tensor]:
        """Return the reference model in open_clip's layout."""
        return {**self.towers.model.state_dict(), **self.params}

    def _trained_extractor(self) -> dict[str, Tensor]:
        if self.extractor is None or not self.config.train_extractor:
            return {}
        return dict(self.extractor.model.state_dict())
