"""FLYT's brute-force step against PyTorch, open_clip, fixed values and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import torch.nn.functional as F

from tests.oracles.flyt import (
    Moments,
    Optimizer,
    adamw,
    brute_force,
    clip_loss,
    cross_entropy,
    finite_difference,
    is_decayed,
    naive_weighted_clip_loss,
    named_parameters,
    no_moments,
    sgd,
    warm_moments,
)
from tests.oracles.flyt_inputs import Downstream, random_batches, small_clip

DOUBLE = torch.float64
LOG_TEMPERATURE = torch.tensor(2.65926, dtype=DOUBLE)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return small_clip()


@pytest.fixture(scope="module")
def params(model):
    return named_parameters(model)


@pytest.fixture(scope="module")
def moments(model, params):
    return warm_moments(model, params)


def unit_rows(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=DOUBLE), dim=-1)


def direction(weights: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return weights * torch.randn(len(weights), generator=generator, dtype=DOUBLE)


# ------------------------------------------------------------------------------------ losses


def test_weighted_clip_loss_of_fixed_vectors():
    images = F.normalize(
        torch.tensor([[1, 2, 2], [2, 1, 0], [0, 3, 4], [1, 1, 1]], dtype=DOUBLE), dim=-1
    )
    texts = F.normalize(
        torch.tensor([[1, 2, 1], [2, 0, 1], [1, 3, 4], [1, -1, 1]], dtype=DOUBLE), dim=-1
    )
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=DOUBLE)
    loss = naive_weighted_clip_loss(images, texts, 10.0, weights)
    assert float(loss) == pytest.approx(0.9181759301, abs=5e-11)


def test_uniform_weights_give_open_clips_loss():
    from open_clip.loss import ClipLoss

    images, texts = unit_rows(7, 5, 0), unit_rows(7, 5, 1)
    expected = ClipLoss()(images, texts, torch.tensor(14.0, dtype=DOUBLE))
    uniform = torch.full((7,), 1 / 7, dtype=DOUBLE)
    torch.testing.assert_close(naive_weighted_clip_loss(images, texts, 14.0, uniform), expected)
    torch.testing.assert_close(clip_loss(images, texts, 14.0), expected)


def test_a_vanishing_weight_leaves_the_example_out():
    images, texts = unit_rows(5, 4, 2), unit_rows(5, 4, 3)
    weights = torch.tensor([0.4, 0.3, 1e-30, 0.2, 0.1], dtype=DOUBLE)
    kept = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(
        naive_weighted_clip_loss(images, texts, 9.0, weights),
        naive_weighted_clip_loss(images[kept], texts[kept], 9.0, weights[kept]),
    )


def test_cross_entropy_of_one_task_equals_pytorchs():
    images, classes = unit_rows(6, 4, 4), unit_rows(3, 4, 5)
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    torch.testing.assert_close(
        cross_entropy(images, classes, labels, (3,), 12.0),
        F.cross_entropy(12.0 * images @ classes.T, labels),
    )


def test_cross_entropy_ignores_the_classes_of_other_tasks():
    images, classes = unit_rows(6, 4, 6), unit_rows(5, 4, 7)
    labels = torch.tensor([0, 3, 1, 4, 2, 0])
    first, second = labels < 3, labels >= 3
    logits = 7.0 * images @ classes.T
    total = F.cross_entropy(logits[first][:, :3], labels[first], reduction="sum")
    total = total + F.cross_entropy(logits[second][:, 3:], labels[second] - 3, reduction="sum")
    torch.testing.assert_close(cross_entropy(images, classes, labels, (3, 2), 7.0), total / 6)
    with pytest.raises(ValueError, match="label 5"):
        cross_entropy(images, classes, torch.tensor([0, 5, 0, 0, 0, 0]), (3, 2), 7.0)


# -------------------------------------------------------------------------------- optimizers


def tiny_params() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    shapes = {"conv.weight": (3, 2), "ln_1.weight": (4,), "c_fc.bias": (2,), "logit_scale": ()}
    return {
        name: torch.randn(shape, generator=generator, dtype=DOUBLE)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimizers_equal_pytorchs_over_several_steps(kind):
    ours = tiny_params()
    theirs = {name: param.clone().requires_grad_() for name, param in ours.items()}
    optimizer = Optimizer(kind=kind, lr=0.01, momentum=0.9)
    groups = [
        {"params": [p for n, p in theirs.items() if is_decayed(n, p)], "weight_decay": 0.2},
        {"params": [p for n, p in theirs.items() if not is_decayed(n, p)], "weight_decay": 0.0},
    ]
    assert [len(group["params"]) for group in groups] == [1, 3]
    if kind == "adamw":
        reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-6)
    else:
        reference = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    state = no_moments(ours)
    generator = torch.Generator().manual_seed(9)
    for _ in range(5):
        grads = {
            name: torch.randn(param.shape, generator=generator, dtype=DOUBLE)
            for name, param in ours.items()
        }
        grads["c_fc.bias"][0] = 0.0  # an entry whose gradient is always 0
        ours, state = {"adamw": adamw, "sgd": sgd}[kind](ours, grads, state, optimizer)
        for name, param in theirs.items():
            param.grad = grads[name].clone()
        reference.step()
    assert state.step == 5
    for name, param in theirs.items():
        torch.testing.assert_close(ours[name], param.detach(), rtol=1e-13, atol=1e-15)


def test_adamw_has_a_derivative_where_the_second_moment_is_zero():
    zero = torch.zeros(3, dtype=DOUBLE)
    grad = zero.clone().requires_grad_()
    optimizer = Optimizer(lr=0.01)
    stepped, _ = adamw({"bias": zero}, {"bias": grad}, Moments({"bias": zero}, {"bias": zero}, 4),
                       optimizer)  # fmt: skip
    (slope,) = torch.autograd.grad(stepped["bias"].sum(), grad)
    first = (1 - 0.9) / (1 - 0.9**5)
    expected = torch.full_like(zero, -0.01 * first / 1e-6)
    torch.testing.assert_close(slope, expected, rtol=1e-13, atol=0)
    assert torch.equal(stepped["bias"], zero)


# ------------------------------------------------------------------------------ the whole step


def test_small_clip_is_not_degenerate(model):
    upstream, weights, downstream = random_batches()
    with torch.no_grad():
        images, texts, tau = model(upstream.images, upstream.texts)
    assert images.dtype == texts.dtype == DOUBLE
    torch.testing.assert_close(images.norm(dim=1), torch.ones(8, dtype=DOUBLE))
    assert float(tau) == pytest.approx(10.0)
    assert float((images @ texts.T).std()) > 0.1
    assert float((images @ images.T).std()) > 0.05
    assert float(weights.sum()) == pytest.approx(1.0)
    again = small_clip()
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert int(downstream.labels.max()) < 5


def with_loss(downstream: Downstream, loss: str, learned: bool) -> Downstream:
    return replace(downstream, loss=loss, log_temperature=LOG_TEMPERATURE if learned else None)


@pytest.mark.parametrize("learned", [False, True], ids=["temperature_1", "learned"])
@pytest.mark.parametrize("loss", ["cross_entropy", "clip"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_brute_force_agrees_with_finite_differences(model, params, kind, loss, learned):
    lr = 1e-3 if kind == "adamw" else 0.1
    optimizer = Optimizer(kind=kind, lr=lr, momentum=0.9)
    state = warm_moments(model, params, optimizer=optimizer)
    upstream, weights, downstream = random_batches(class_counts=(3, 2))
    args = (model, params, state, upstream, weights, with_loss(downstream, loss, learned))
    exact = brute_force(*args, optimizer)
    way = direction(weights)
    slope = finite_difference(*args, optimizer, way)
    assert float(exact.weight_gradient @ way) == pytest.approx(slope, rel=1e-6)
    assert (exact.temperature_gradient is None) == (not learned)


def test_brute_force_agrees_with_finite_differences_on_the_first_step(model, params):
    """Without moments AdamW is nearly sign(g), which has a kink, so the differences are small."""
    upstream, weights, downstream = random_batches()
    args = (model, params, no_moments(params), upstream, weights, downstream, Optimizer())
    way = direction(weights)
    slope = finite_difference(*args, way, size=1e-6)
    assert float(brute_force(*args).weight_gradient @ way) == pytest.approx(slope, rel=1e-4)


def test_the_other_gradients_agree_with_finite_differences(model, params, moments):
    upstream, weights, downstream = random_batches()
    downstream = with_loss(downstream, "cross_entropy", True)
    step = brute_force(model, params, moments, upstream, weights, downstream, Optimizer())

    def loss(log_temperature: float) -> float:
        moved = replace(downstream, log_temperature=torch.tensor(log_temperature, dtype=DOUBLE))
        args = (model, params, moments, upstream, weights, moved, Optimizer())
        return float(brute_force(*args, differentiate=False).downstream_loss)

    centre = float(LOG_TEMPERATURE)
    slope = (loss(centre + 1e-5) - loss(centre - 1e-5)) / 2e-5
    assert float(step.temperature_gradient) == pytest.approx(slope, rel=1e-8)
    # dL/dg is dL/dθ⁺ through AdamW, elementwise: a change of one entry of g tests both
    name = "visual.proj"
    entry = (0, 0)
    for sign in (1, -1):
        moved = {key: value.clone() for key, value in step.upstream_gradient.items()}
        moved[name][entry] += sign * 1e-7
        stepped, _ = adamw(params, moved, moments, Optimizer())
        change = float(stepped[name][entry] - step.stepped[name][entry]) / (sign * 1e-7)
        expected = float(step.stepped_gradient[name][entry]) * change
        assert float(step.cotangent[name][entry]) == pytest.approx(expected, rel=1e-3)


def test_the_step_equals_pytorchs_step(model, params):
    """L_up, θ⁺ and L_down of the first step equal those of open_clip's model and torch's AdamW."""
    from open_clip.loss import ClipLoss

    upstream, _, downstream = random_batches()
    uniform = torch.full((8,), 1 / 8, dtype=DOUBLE)
    done = brute_force(model, params, no_moments(params), upstream, uniform, downstream,
                       Optimizer(lr=1e-3))  # fmt: skip
    other = small_clip()
    named = list(other.named_parameters())
    reference = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if is_decayed(n, p)], "weight_decay": 0.2},
            {"params": [p for n, p in named if not is_decayed(n, p)], "weight_decay": 0.0},
        ],
        lr=1e-3, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    loss = ClipLoss()(*other(upstream.images, upstream.texts))
    loss.backward()
    reference.step()
    torch.testing.assert_close(done.upstream_loss, loss.detach())
    for name, param in named:
        # rounding decides the step of entries whose exact gradient is 0 (biases of the keys)
        torch.testing.assert_close(done.stepped[name], param.detach(), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        images, prompts, _ = other(downstream.images, downstream.prompts)
        expected = F.cross_entropy(images @ prompts.T, downstream.labels)
    torch.testing.assert_close(done.downstream_loss, expected, rtol=1e-9, atol=0)


def test_moments_stay_zero_for_words_in_no_batch(params, moments):
    second = moments.second["token_embedding.weight"].abs().sum(dim=1)
    assert moments.step == 3
    assert 0 < int((second == 0).sum()) < len(second)
    assert all(float(moments.second[name].abs().sum()) > 0 for name in params)
