"""The look-ahead step against PyTorch's optimizers, and its pull-back against autograd."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

from datacomp_flyt.flyt.lookahead_adamw import (
    ClipGradNorm,
    LookaheadAdamW,
    LookaheadOptimizer,
    LookaheadSGD,
    OptimizerState,
    Tensors,
    decays,
    norm,
)

DOUBLE = torch.float64
LR = 0.01
SHAPES = {
    "visual.conv1.weight": (4, 3, 2, 2),
    "token_embedding.weight": (6, 3),
    "transformer.bias_table": (3, 3),
    "visual.bn1.weight": (2, 2),
    "ln_pre.weight": (2, 2),
    "other_logit_scale": (1, 2),
    "ln_final.weight": (5,),
    "class_embedding": (4,),
    "c_fc.bias": (3,),
    "logit_scale": (),
}
DECAYED = {"visual.conv1.weight", "token_embedding.weight"}
OPTIMIZERS: dict[str, LookaheadOptimizer] = {
    "adamw": LookaheadAdamW(),
    "other_adamw": LookaheadAdamW((0.8, 0.95), 1e-3, 0.05),
    "sgd": LookaheadSGD(),
    "momentum": LookaheadSGD(0.9, 0.1),
}


def random_like_params(seed: int, scale: float = 1.0, dtype: torch.dtype = DOUBLE) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(shape, generator=generator, dtype=DOUBLE)).to(dtype)
        for name, shape in SHAPES.items()
    }


def some_grads(seed: int) -> Tensors:
    """Make gradients with rows that are always or sometimes 0, as in token tables."""
    grads = random_like_params(seed, 0.3)
    grads["token_embedding.weight"][[1, 4]] = 0.0
    if seed % 2:
        grads["token_embedding.weight"][2] = 0.0
    grads["c_fc.bias"][0] = 0.0
    return grads


def warm_state(optimizer: LookaheadOptimizer, steps: int = 3) -> OptimizerState:
    state = optimizer.init(random_like_params(0))
    for step in range(steps):
        state = optimizer.next_state(some_grads(10 + step), state)
    return state


def pull_back_by_autograd(
    optimizer: LookaheadOptimizer,
    params: Tensors,
    grads: Tensors,
    state: OptimizerState,
    cotangents: Tensors,
) -> Tensors:
    leaves = {name: grad.clone().requires_grad_() for name, grad in grads.items()}
    stepped = optimizer.step(params, leaves, state, LR)
    total = torch.stack([(stepped[name] * cotangents[name]).sum() for name in stepped]).sum()
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def assert_same(ours: Tensors, expected: Tensors, rtol: float, atol: float = 0.0) -> None:
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol, msg=name)


# ----------------------------------------------------------------------------------- the step


def test_which_parameters_decay() -> None:
    params = random_like_params(0)
    assert {name for name, param in params.items() if decays(name, param)} == DECAYED


def test_decay_groups_are_those_of_a_real_model() -> None:
    """Weight decay skips tensors below two dimensions and names with bn, ln, bias, logit_scale."""
    pytest.importorskip("open_clip")
    from tests.oracles.flyt_inputs import small_clip

    named = dict(small_clip().named_parameters())
    decayed = {name for name, param in named.items() if decays(name, param)}
    assert {"visual.proj", "text_projection", "positional_embedding"} | DECAYED <= decayed
    assert all(named[name].ndim >= 2 for name in decayed)
    assert not any("ln_" in name or "bias" in name for name in decayed)


def torch_optimizer(kind: str, leaves: Tensors) -> torch.optim.Optimizer:
    decay = {"adamw": 0.2, "other_adamw": 0.05, "sgd": 0.0, "momentum": 0.0}[kind]
    groups = [
        {"params": [p for n, p in leaves.items() if n in DECAYED], "weight_decay": decay},
        {"params": [p for n, p in leaves.items() if n not in DECAYED], "weight_decay": 0.0},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6)
    if kind == "other_adamw":
        return torch.optim.AdamW(groups, lr=LR, betas=(0.8, 0.95), eps=1e-3)
    return torch.optim.SGD(groups, lr=LR, momentum=0.9 if kind == "momentum" else 0.0)


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_steps_equal_pytorchs(kind: str) -> None:
    optimizer = LookaheadSGD(0.9) if kind == "momentum" else OPTIMIZERS[kind]
    params = random_like_params(0)
    leaves = {name: param.clone().requires_grad_() for name, param in params.items()}
    reference = torch_optimizer(kind, leaves)
    state = optimizer.init(params)
    for step in range(5):
        grads = some_grads(step)
        for name, leaf in leaves.items():
            leaf.grad = grads[name].clone()
        reference.step()
        params = optimizer.step(params, grads, state, LR)
        state = optimizer.next_state(grads, state)
        expected = {name: leaf.detach() for name, leaf in leaves.items()}
        assert_same(params, expected, rtol=1e-13, atol=1e-15)
    assert state.step == 5
    kept = {name: reference.state[leaf] for name, leaf in leaves.items()}
    if "adamw" in kind:
        assert_same(state.first, {n: s["exp_avg"] for n, s in kept.items()}, 1e-13, 1e-16)
        assert_same(state.second, {n: s["exp_avg_sq"] for n, s in kept.items()}, 1e-13, 1e-16)
    elif kind == "momentum":
        assert_same(state.first, {n: s["momentum_buffer"] for n, s in kept.items()}, 1e-13)


def test_sgds_decay_is_decoupled() -> None:
    """Decay is decoupled as in AdamW; PyTorch's SGD adds it to the gradient."""
    params, grads = random_like_params(0), some_grads(1)
    plain, decayed = LookaheadSGD(0.9), LookaheadSGD(0.9, 0.1)
    state = warm_state(plain)
    without, actual = (o.step(params, grads, state, LR) for o in (plain, decayed))
    for name, param in params.items():
        shrunk = without[name] - (LR * 0.1 * param if name in DECAYED else 0.0)
        torch.testing.assert_close(actual[name], shrunk, rtol=1e-13, atol=1e-15)
    assert_same(plain.next_state(grads, state).first, decayed.next_state(grads, state).first, 0)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_arguments_are_not_changed(kind: str, clipped: bool) -> None:
    """Only `next_state` advances the state, so a repeated step has the same result."""
    optimizer = ClipGradNorm(OPTIMIZERS[kind], 0.1) if clipped else OPTIMIZERS[kind]
    params, grads, cotangents = random_like_params(0), some_grads(1), random_like_params(2)
    state = warm_state(optimizer)
    given = (params, grads, cotangents, state.first, state.second)
    before = copy.deepcopy(given)

    def run() -> tuple[Tensors, Tensors, OptimizerState]:
        stepped = optimizer.step(params, grads, state, LR)
        pulled = optimizer.pull_back(grads, state, LR, cotangents)
        return stepped, pulled, optimizer.next_state(grads, state)

    once, twice = run(), run()
    for tensors, old in zip(given, before, strict=True):
        assert_same(tensors, old, 0)
    assert state.step == 3
    assert once[2].step == twice[2].step == 4
    for one, other in zip((*once[:2], once[2].first), (*twice[:2], twice[2].first), strict=True):
        assert_same(one, other, 0)
    assert any(not torch.equal(once[2].first[name], state.first[name]) for name in SHAPES)


# ------------------------------------------------------------------------------- the pull-back


@pytest.mark.parametrize("lr_scale", [1.0, 0.0])
@pytest.mark.parametrize("warm", [True, False], ids=["moments", "first_step"])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_pull_back_is_autograd_of_the_step(kind: str, warm: bool, lr_scale: float) -> None:
    """The pull-back is also right at g = s = 0, where autograd of a plain root gives NaN."""
    optimizer = OPTIMIZERS[kind]
    params, grads, cotangents = random_like_params(0), some_grads(21), random_like_params(2)
    state = warm_state(optimizer) if warm else optimizer.init(params)
    if warm and "adamw" in kind:
        table = "token_embedding.weight"
        unseen = (state.second[table] == 0) & (grads[table] == 0)
        assert unseen.any(1).tolist() == [False, True, False, False, True, False]
    expected = pull_back_by_autograd(optimizer, params, grads, state, cotangents)
    actual = optimizer.pull_back(grads, state, LR * lr_scale, cotangents)
    # at m = s = 0, the terms of autograd cancel down to eps, so its own error is larger
    rtol = 1e-12 if warm or "adamw" not in kind else 1e-8
    assert_same(actual, {name: lr_scale * value for name, value in expected.items()}, rtol)


@pytest.mark.parametrize("kind", ["adamw", "other_adamw", "momentum"])
def test_the_step_has_the_derivatives_of_its_values(kind: str) -> None:
    """gradcheck passes with second moments well above 0, away from AdamW's kink."""
    optimizer = OPTIMIZERS[kind]
    names = ["ln_final.weight", "logit_scale"]
    params = {name: random_like_params(0)[name] for name in names}
    state = optimizer.init(params)
    for step in range(3):
        grads = {name: 1.0 + random_like_params(30 + step, 0.2)[name] for name in names}
        state = optimizer.next_state(grads, state)

    def stepped(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        return tuple(optimizer.step(params, given, state, 1.0).values())

    leaves = tuple((0.5 + random_like_params(9, 0.1)[name]).requires_grad_() for name in names)
    assert torch.autograd.gradcheck(stepped, leaves, eps=1e-6, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("steps_done", [0, 10])
def test_the_derivative_at_zero_is_the_slope_at_zero(steps_done: int) -> None:
    """For g = s = m = 0, the step -lr (1 - β1) g / (c1 (|g| ... + eps)) has a slope at g = 0."""
    optimizer = LookaheadAdamW()
    zero = {"bias": torch.zeros(1, dtype=DOUBLE)}
    state = OptimizerState(steps_done, dict(zero), dict(zero))
    one = {"bias": torch.ones(1, dtype=DOUBLE)}
    (actual,) = optimizer.pull_back(zero, state, LR, one).values()
    h = 1e-13  # far below eps
    ahead, behind = (
        optimizer.step(zero, {"bias": torch.full((1,), side * h, dtype=DOUBLE)}, state, LR)["bias"]
        for side in (1, -1)
    )
    torch.testing.assert_close(actual, (ahead - behind) / (2 * h), rtol=2e-6, atol=0)
    torch.testing.assert_close(
        actual, torch.full_like(actual, -LR * 0.1 / (1 - 0.9 ** (steps_done + 1)) / 1e-6)
    )
    assert torch.equal(optimizer.step(zero, zero, state, LR)["bias"], zero["bias"])


def test_first_step_in_float32_keeps_its_digits() -> None:
    """The slope lr eps / (|g| + eps)² is not lost to rounding."""
    optimizer = LookaheadAdamW()
    sizes = torch.logspace(-7, 1, 200)
    grads = {"bias": sizes * torch.tensor([1.0, -1.0]).repeat(100)}
    ones, state = {"bias": torch.ones(200)}, optimizer.init(grads)
    ours = optimizer.pull_back(grads, state, LR, ones)["bias"]
    by_autograd = pull_back_by_autograd(optimizer, grads, grads, state, ones)["bias"]
    exact = -LR * optimizer.eps / (sizes.double() + optimizer.eps) ** 2
    our_errors, other_errors = ((actual / exact - 1).abs() for actual in (ours, by_autograd))
    assert our_errors.max() < 1e-5 < 1e-3 < other_errors.max()


# ---------------------------------------------------------------------------- gradient clipping


@pytest.mark.parametrize("share", [0.05, 0.999, 1.001, 20.0])
@pytest.mark.parametrize("kind", ["adamw", "momentum"])
def test_clipping_is_pytorchs_and_its_pull_back_is_autograds(kind: str, share: float) -> None:
    """The clipped step and its pull-back are right on both sides of the threshold."""
    params, grads, cotangents = random_like_params(0), some_grads(21), random_like_params(2)
    size = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
    assert float(norm(grads)) == pytest.approx(size, rel=1e-14)
    inner = OPTIMIZERS[kind]
    optimizer = ClipGradNorm(inner, share * size)
    state = warm_state(inner)

    leaves = [torch.zeros_like(grad) for grad in grads.values()]
    for leaf, grad in zip(leaves, grads.values(), strict=True):
        leaf.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(leaves, share * size)
    clipped = {name: leaf.grad for name, leaf in zip(grads, leaves, strict=True)}
    # PyTorch divides by |g| + 1e-6
    actual = optimizer.step(params, grads, state, LR), optimizer.next_state(grads, state).first
    expected = inner.step(params, clipped, state, LR), inner.next_state(clipped, state).first
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other, 1e-5, 1e-6)

    by_autograd = pull_back_by_autograd(optimizer, params, grads, state, cotangents)
    largest = max(float(value.abs().max()) for value in by_autograd.values())
    pulled = optimizer.pull_back(grads, state, LR, cotangents)
    assert_same(pulled, by_autograd, 1e-11, 1e-13 * largest)


def test_clipping_a_gradient_of_zero() -> None:
    params = random_like_params(0)
    zero = random_like_params(0, 0.0)
    inner = LookaheadAdamW()
    optimizer = ClipGradNorm(inner, 1.0)
    state = optimizer.init(params)
    actual = optimizer.pull_back(zero, state, LR, params)
    assert_same(optimizer.step(params, zero, state, LR), inner.step(params, zero, state, LR), 0)
    assert all(value.isfinite().all() for value in actual.values())
