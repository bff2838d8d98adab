"""Three steps of Algorithm 1 against autograd through the whole step."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tests.flyt.algorithm_cases import (
    CASES,
    MEANS,
    RATES,
    STDS,
    Batches,
    Case,
    batches_of,
    make_algorithm,
    make_scoring,
)
from tests.oracles.flyt import (
    Moments,
    Optimizer,
    brute_force,
    is_decayed,
    named_parameters,
    no_moments,
)
from tests.oracles.flyt_inputs import small_clip
from tests.tolerances import float_bound


class Oracle:
    """Algorithm 1 by brute force for ∂L_down/∂w, and torch.optim for φ and τ_DS."""

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, small_clip()
        self.theta = named_parameters(self.model)
        self.moments = no_moments(self.theta)
        self.phi = dict(make_scoring(case).named_parameters())
        self.extractor = small_clip(seed=5)
        self.psi = dict(self.extractor.named_parameters())
        self.log_temperature = torch.tensor(math.log(1 / 0.07), dtype=torch.float64)
        config = case.config
        trained = {**self.phi, **(self.psi if config.train_extractor else {})}
        decayed = [p for n, p in trained.items() if is_decayed(n, p)]
        others = [p for n, p in trained.items() if not is_decayed(n, p)]
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.scoring_weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=config.betas,
            eps=config.eps,
        )
        self.temperature_adamw = torch.optim.AdamW(
            [self.log_temperature], betas=config.betas, eps=config.eps, weight_decay=0.0
        )
        self.weights = torch.empty(0)

    def step(self, step: int, batches: Batches) -> None:
        config = self.case.config
        reference_lr, scoring_lr = (
            config.reference_lr * RATES["reference"][step] / RATES["reference"][2],
            RATES["scoring"][step],
        )
        w = self._scores(batches).softmax(0)
        self.weights = w.detach()
        downstream = batches.downstream
        learned = config.downstream_loss != "cross_entropy"
        if learned:
            downstream = replace(downstream, log_temperature=self.log_temperature)
        optimizer = Optimizer(
            config.optimizer,
            reference_lr,
            config.betas,
            config.eps,
            config.weight_decay,
            config.betas[0],
        )
        done = brute_force(
            self.model,
            self.theta,
            self.moments,
            batches.upstream,
            self.weights,
            downstream,
            optimizer,
        )
        self.adamw.zero_grad()
        w.backward(done.weight_gradient)
        for group in self.adamw.param_groups:
            group["lr"] = scoring_lr
        self.adamw.step()
        self.moments: Moments = done.stepped_moments
        if not config.freeze_reference:
            self.theta = done.stepped
            self.theta["logit_scale"] = self.theta["logit_scale"].clamp(0, math.log(100))
        if learned:
            self.log_temperature.grad = done.temperature_gradient
            self.temperature_adamw.param_groups[0]["lr"] = reference_lr
            self.temperature_adamw.step()

    def _scores(self, batches: Batches) -> Tensor:
        if not self.case.glu:
            assert batches.features is not None
            means, stds = (torch.tensor(v, dtype=torch.float64) for v in (MEANS, STDS))
            x = (batches.features - means) / stds
            return x @ self.phi["layers.0.weight"][0] + self.phi["layers.0.bias"]
        z = batches.features
        if z is None:
            inputs = (batches.upstream.images, batches.upstream.texts)
            z = torch.cat(functional_call(self.extractor, self.psi, inputs)[:2], 1)
        gate, value = (
            F.linear(z, self.phi[f"layers.0.{w}.weight"], self.phi[f"layers.0.{w}.bias"])
            for w in ("w1", "w3")
        )
        hidden = gate / (1 + torch.exp(-gate)) * value
        scores = hidden @ self.phi["layers.0.w2.weight"][0] + self.phi["layers.0.w2.bias"]
        return scores


def agree(actual: Any, expected: Any, tolerance: float) -> None:
    """Compare tensors, with a tolerance relative to the largest entry of each."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        value = value.detach()
        error = float((actual[name].detach() - value).abs().max())
        assert error <= tolerance * max(float(value.abs().max()), 1e-3), (name, error)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_three_steps_equal_brute_force(case: Case) -> None:
    algorithm, oracle = make_algorithm(case), Oracle(case)
    before = copy.deepcopy(oracle.phi)
    for step in range(3):
        batches = batches_of(case, step)
        metrics = algorithm.step(step, *batches.local(case.captions))
        oracle.step(step, batches)
        weights = oracle.weights
        assert metrics["effective_batch_size"] == pytest.approx(1 / float((weights**2).sum()))
        assert metrics["weight_entropy"] == pytest.approx(-float((weights * weights.log()).sum()))
        assert metrics["largest_weight"] == pytest.approx(float(weights.max()))
        assert metrics["scoring_lr"] == pytest.approx(RATES["scoring"][step])
        assert metrics["skipped_steps"] == 0
    moved = {name for name in before if not torch.equal(before[name], oracle.phi[name])}
    assert moved >= {name for name in before if "weight" in name}
    agree(dict(algorithm.scoring.named_parameters()), oracle.phi, case.tolerance)
    agree(algorithm.params, oracle.theta, case.tolerance)
    agree(algorithm.state.first, oracle.moments.first, 10 * case.tolerance)
    if case.config.optimizer == "adamw":
        agree(algorithm.state.second, oracle.moments.second, 10 * case.tolerance)
    if algorithm.extractor is not None:
        agree(dict(algorithm.extractor.model.named_parameters()), oracle.psi, 10 * case.tolerance)
        start = small_clip(seed=5).text_projection
        assert torch.equal(oracle.psi["text_projection"], start) != case.config.train_extractor
    expected = float(oracle.log_temperature)
    bound = float_bound(
        "float32", expected, 3 * 4
    )  # the temperature is float32; a step rounds 4 times
    assert float(algorithm.log_temperature) == pytest.approx(expected, rel=0, abs=bound)
    still = float(oracle.log_temperature) == math.log(1 / 0.07)
    assert still == (case.config.downstream_loss == "cross_entropy")


def test_the_step_clips_gradients() -> None:
    """Clipped SGD equals SGD with the learning rate lr c / |g|."""
    batches = batches_of(CASES["SGD"], 0)
    plain = make_algorithm(CASES["SGD"])
    plain.step(0, *batches.local(False))
    clipped = make_algorithm(
        Case({**CASES["SGD"].changes, "betas": (0.0, 0.98), "grad_clip_norm": 1e-3})
    )
    start = named_parameters(small_clip())
    clipped.step(0, *batches.local(False))
    moved = torch.cat([(clipped.params[n] - start[n]).flatten() for n in start]).norm()
    assert float(moved) == pytest.approx(
        1e-3 * 5e-3
    )  # the clipping norm times the learning rate of the first step
    unclipped = torch.cat([(plain.params[n] - start[n]).flatten() for n in start]).norm()
    assert unclipped > 10 * moved


def test_the_logit_scale_is_clamped() -> None:
    for start, expected in ((math.log(100) + 1, math.log(100)), (-1.0, 0.0)):
        algorithm = make_algorithm(CASES["M-FLYT"])
        algorithm.params["logit_scale"].fill_(start)
        algorithm.step(0, *batches_of(CASES["M-FLYT"], 0).local(False))
        assert float(algorithm.params["logit_scale"]) == pytest.approx(expected)


def test_a_run_without_features_is_refused() -> None:
    up, down = batches_of(CASES["M-FLYT"], 0).local(False)
    with pytest.raises(ValueError, match="--scores_dir"):
        make_algorithm(CASES["M-FLYT"]).step(0, replace(up, features=None), down)
