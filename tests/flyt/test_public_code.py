"""The public FLYT code against the brute-force oracle and our trainer's step.

FLYT_DIR      a full checkout of formll/FLYT at 50035b3 (read only)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from tests.flyt.problems import DOUBLE, Problem, brute_force, solve
from tests.flyt.public_code import public_inputs, public_step
from tests.oracles.flyt import Moments, Optimizer, named_parameters, no_moments, warm_moments
from tests.oracles.flyt_inputs import SMALL_CONFIG, Upstream, random_batches, small_clip

LR = 5e-5


def as_float32(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Round float64 tensors to float32, so that both sides start from the same values."""
    return {name: tensor.float().double() for name, tensor in tensors.items()}


def relative_error(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs.double() - ours).norm() / ours.norm())


def without_key_bias(name: str, param: torch.Tensor) -> torch.Tensor:
    """Leave out the keys' biases: their exact gradient is 0, so AdamW's step is rounding noise."""
    if not name.endswith("in_proj_bias"):
        return param
    queries, _, values = param.chunk(3)
    return torch.cat([queries, values])


LOSSES = [("cross_entropy", None), ("cross_entropy", 2.65926), ("clip", 2.65926), ("clip", None)]
STARTS = {"moments": (True, 1e-6), "first_step": (False, 0.1)}


@dataclass(frozen=True)
class Compared:
    """A problem, and the public code's result for it in float32."""

    problem: Problem
    scores: torch.Tensor
    mixing: torch.Tensor
    theirs: dict[str, Any]

    def by_mixing(self, weight_gradient: torch.Tensor) -> torch.Tensor:
        """Return ∂L/∂mixing [1, k] for a ∂L/∂w."""
        leaf = self.mixing.double().requires_grad_()
        weights = (self.scores.double() @ leaf[0]).softmax(0)
        return torch.autograd.grad(weights @ weight_gradient.double(), leaf)[0]


@pytest.fixture(
    scope="module",
    params=[(*loss, start) for loss in LOSSES for start in STARTS],
    ids=lambda param: "-".join(map(str, param)),
)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Run the public code on a problem.

    The first step needs a larger eps. Without moments the update is lr g / (|g| + eps), and AdamW's
    formula computes its slope as a small difference of large numbers. At eps = 1e-6 in float32, the
    error of dL/dw is 2e-3 to 2e-2, in the public code and in the oracle.
    """
    flyt_dir = os.environ.get("FLYT_DIR")
    if not flyt_dir:
        pytest.skip("FLYT_DIR does not name a checkout of formll/FLYT")
    loss, log_temperature, start = request.param
    warm, eps = STARTS[start]
    model = small_clip()
    params = as_float32(named_parameters(model))
    moments = warm_moments(model, params) if warm else no_moments(params)
    moments = Moments(as_float32(moments.first), as_float32(moments.second), moments.step)
    upstream, _, downstream = random_batches(batch=16, downstream_batch=12)
    upstream = Upstream(upstream.images.float().double(), upstream.texts)
    downstream = replace(downstream, loss=loss, images=downstream.images.float().double())
    if log_temperature is not None:
        temperature = torch.tensor(log_temperature).double()
        downstream = replace(downstream, log_temperature=temperature)

    scores = torch.randn(16, 3, generator=torch.Generator().manual_seed(5))
    mixing = {"layers.0.weight": torch.tensor([[0.8, -0.5, 0.3]]), "layers.0.bias": torch.ones(1)}
    weights = (scores.double() @ mixing["layers.0.weight"][0].double()).softmax(0)
    problem = Problem(
        model, params, moments, upstream, weights, downstream, Optimizer(lr=LR, eps=eps)
    )
    given = public_inputs(
        SMALL_CONFIG, params, moments, upstream, scores, mixing, downstream, lr=LR, eps=eps
    )
    theirs = public_step(given, tmp_path_factory.mktemp("public"), flyt_dir)
    return Compared(problem, scores, mixing["layers.0.weight"], theirs)


def assert_same_step(
    compared: Compared, ours: dict[str, Any], grads: dict[str, Any], stepped: dict[str, Any]
) -> None:
    """Compare within float32 rounding; `grads` is g and `stepped` θ⁺, by name."""
    theirs, params = compared.theirs, compared.problem.params
    pairs = {name: (theirs[name], value) for name, value in ours.items()}
    by_mixing = compared.by_mixing(ours["weight_gradient"])
    pairs["by_mixing"] = (theirs["scoring_gradient"]["layers.0.weight"], by_mixing)
    assert set(theirs["stepped"]) == set(params) == set(grads) == set(stepped)
    for name, param in params.items():
        pairs[f"g of {name}"] = (theirs["upstream_gradient"][name], grads[name].double())
        # a step of lr on numbers near 1 loses digits, so the tolerance is lr / 100
        moves = (without_key_bias(name, p[name].double() - param)
                 for p in (theirs["stepped"], stepped))  # fmt: skip
        assert torch.allclose(*moves, rtol=0, atol=LR / 100), name
    errors = {name: relative_error(*pair) for name, pair in pairs.items()}
    print({name: f"{error:.1e}" for name, error in errors.items() if " of " not in name})
    wrong = {name: error for name, error in errors.items() if not error < 2e-5}
    assert not wrong, wrong


@pytest.mark.slow
def test_public_code_agrees_with_the_oracle(compared: Compared) -> None:
    step = brute_force(compared.problem)
    ours = {
        "weights": compared.problem.weights,
        "upstream_loss": step.upstream_loss,
        "downstream_loss": step.downstream_loss,
        "weight_gradient": step.weight_gradient,
    }
    if step.temperature_gradient is not None:
        ours["temperature_gradient"] = step.temperature_gradient
    assert_same_step(compared, ours, step.upstream_gradient, step.stepped)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=["float64", "float32"])
def test_public_code_agrees_with_ours(compared: Compared, dtype: torch.dtype) -> None:
    """The metagradient, with exact tangents and micro-batches, equals the public code's."""
    problem = compared.problem
    actual = solve(problem, "exact", 5, dtype)
    ours = {
        "upstream_loss": actual.upstream_loss,
        "downstream_loss": actual.downstream_loss,
        "weight_gradient": actual.weight_gradient,
    }
    log_temperature = problem.downstream.log_temperature
    if log_temperature is not None:
        ours["temperature_gradient"] = actual.logit_scale_gradient * log_temperature.exp()
    ours = {name: value.double() for name, value in ours.items()}
    assert_same_step(compared, ours, actual.grads, actual.params)
