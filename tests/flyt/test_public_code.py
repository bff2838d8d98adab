"""The public FLYT code against our brute-force oracle.

FLYT_DIR      a full checkout of formll/FLYT at 50035b3 (read only)
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from tests.flyt.public_code import public_inputs, public_step  # noqa: E402
from tests.oracles.flyt import (  # noqa: E402
    SMALL_CONFIG,
    Moments,
    Optimizer,
    Upstream,
    brute_force,
    named_parameters,
    no_moments,
    random_batches,
    small_clip,
    warm_moments,
)

LR = 5e-5


@pytest.fixture
def flyt_dir() -> Path:
    checkout = os.environ.get("FLYT_DIR")
    if not checkout:
        pytest.skip("FLYT_DIR does not name a checkout of formll/FLYT")
    return Path(checkout)


def as_float32(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Float64 tensors whose values float32 holds exactly: both sides start from the same."""
    return {name: tensor.float().double() for name, tensor in tensors.items()}


def relative_error(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs.double() - ours).norm() / ours.norm())


def without_key_bias(name: str, param: torch.Tensor) -> torch.Tensor:
    """The keys' biases have no gradient in exact arithmetic: AdamW steps along rounding there."""
    if not name.endswith("in_proj_bias"):
        return param
    queries, _, values = param.chunk(3)
    return torch.cat([queries, values])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warm", "eps"), [(True, 1e-6), (False, 0.1)], ids=["moments", "first_step"]
)
@pytest.mark.parametrize(
    ("loss", "log_temperature"),
    [("cross_entropy", None), ("cross_entropy", 2.65926), ("clip", 2.65926), ("clip", None)],
)
def test_public_code_agrees_with_the_oracle(
    flyt_dir: Path,
    tmp_path: Path,
    loss: str,
    log_temperature: float | None,
    warm: bool,
    eps: float,
) -> None:
    """Within the noise of float32.

    The first step takes a larger eps: with no moments the update is lr g / (|g| + eps), whose
    slope AdamW's formula finds as a small difference of large numbers. At eps = 1e-6 float32
    leaves 2e-3 to 2e-2 of error in dL/dw, in their code as in this oracle run in float32.
    """
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
    optimizer = Optimizer(lr=LR, eps=eps)

    scores = torch.randn(16, 3, generator=torch.Generator().manual_seed(5))
    mixing = {"layers.0.weight": torch.tensor([[0.8, -0.5, 0.3]]), "layers.0.bias": torch.ones(1)}
    leaf = mixing["layers.0.weight"].double().requires_grad_()
    weights = (scores.double() @ leaf[0]).softmax(0)
    ours = brute_force(model, params, moments, upstream, weights, downstream, optimizer)
    (by_mixing,) = torch.autograd.grad(weights @ ours.weight_gradient, leaf)

    given = public_inputs(
        SMALL_CONFIG, params, moments, upstream, scores, mixing, downstream, lr=LR, eps=eps
    )
    theirs = public_step(given, tmp_path, flyt_dir)

    pairs = {
        "weights": (theirs["weights"], weights.detach()),
        "L_up": (theirs["upstream_loss"], ours.upstream_loss),
        "L_down": (theirs["downstream_loss"], ours.downstream_loss),
        "dL/dw": (theirs["weight_gradient"], ours.weight_gradient),
        "dL/dmixing": (theirs["scoring_gradient"]["layers.0.weight"], by_mixing),
    }
    if log_temperature is not None:
        pairs["dL/dtemperature"] = (theirs["temperature_gradient"], ours.temperature_gradient)
    for name, param in ours.stepped.items():
        pairs[f"g of {name}"] = (theirs["upstream_gradient"][name], ours.upstream_gradient[name])
        moved = without_key_bias(name, theirs["stepped"][name] - params[name])
        # a step of lr on numbers near 1 loses digits: compare it to a hundredth
        assert torch.allclose(
            moved, without_key_bias(name, param - params[name]), rtol=0, atol=LR / 100
        ), name
    errors = {name: relative_error(*pair) for name, pair in pairs.items()}
    wrong = {name: error for name, error in errors.items() if not error < 2e-5}
    assert not wrong, wrong
    assert set(theirs["stepped"]) == set(params)
    print({name: f"{error:.1e}" for name, error in errors.items() if " of " not in name})
