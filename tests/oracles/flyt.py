"""One FLYT step by brute force: a plain loss, a plain AdamW, and autograd through both.

The step runs in the dtype of the parameters (float64 in the tests), in one process, on the whole
batch, and keeps the graph of both towers. Sources: FLYT section 3.2 (Eq. 2), section 3.3 (Eq. 3),
appendix C.8, and Table 7 for the constants of AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.oracles.flyt_inputs import SMALL_CONFIG as SMALL_CONFIG
from tests.oracles.flyt_inputs import Downstream, Upstream, random_batches
from tests.oracles.flyt_inputs import random_texts as random_texts
from tests.oracles.flyt_inputs import small_clip as small_clip
from tests.oracles.weighted_clip_loss import naive_weighted_clip_loss as naive_weighted_clip_loss

Parameters = dict[str, Tensor]

NEVER_DECAYED = ("bn", "ln", "bias", "logit_scale")


@dataclass(frozen=True)
class Moments:
    """Adam's moments by parameter name, and the number of steps already done.

    For SGD with momentum, `first` is the momentum buffer.
    """

    first: Parameters
    second: Parameters
    step: int


@dataclass(frozen=True)
class Optimizer:
    """An optimizer: "adamw" (decoupled decay) or "sgd" (decay added to the gradient)."""

    kind: str = "adamw"
    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    momentum: float = 0.0


@dataclass(frozen=True)
class Step:
    """The result of a step; gradients that were not requested are None.

    Attributes:
        upstream_gradient: g = dL_up/dθ.
        stepped: the new parameters θ⁺.
        weight_gradient: dL_down/dw [B].
        stepped_gradient: dL_down/dθ⁺.
        cotangent: v = dL_down/dg, through the optimizer.
        temperature_gradient: dL_down/d(log_temperature).
    """

    upstream_loss: Tensor
    downstream_loss: Tensor
    upstream_gradient: Parameters
    stepped: Parameters
    stepped_moments: Moments
    weight_gradient: Tensor | None = None
    stepped_gradient: Parameters | None = None
    cotangent: Parameters | None = None
    temperature_gradient: Tensor | None = None


def cross_entropy(
    image_features: Tensor,
    class_features: Tensor,
    labels: Tensor,
    class_counts: tuple[int, ...],
    temperature: Tensor | float,
) -> Tensor:
    """Compute C.8's mean cross-entropy; an example has only the classes of its own task."""
    total = image_features.new_zeros(())
    for image, label in zip(image_features, labels.tolist(), strict=True):
        first = 0
        for count in class_counts:
            if first <= label < first + count:
                break
            first += count
        else:
            raise ValueError(f"label {label} belongs to none of the tasks {class_counts}")
        logits = temperature * (class_features[first : first + count] @ image)
        total = total + torch.log(torch.exp(logits).sum()) - logits[label - first]
    return total / len(labels)


def clip_loss(image_features: Tensor, text_features: Tensor, temperature: Tensor | float) -> Tensor:
    """Compute C.8's CLIP loss, the mean over the examples and over both directions."""
    pulls = torch.exp(temperature * image_features @ text_features.T)
    both = torch.log(pulls.sum(dim=1)) + torch.log(pulls.sum(dim=0)) - 2 * torch.log(pulls.diag())
    return both.mean() / 2


def upstream_loss(
    model: nn.Module, params: Mapping[str, Tensor], upstream: Upstream, weights: Tensor
) -> Tensor:
    images, texts, tau = functional_call(model, dict(params), (upstream.images, upstream.texts))[:3]
    return naive_weighted_clip_loss(images, texts, tau, weights)


def downstream_loss(
    model: nn.Module, params: Mapping[str, Tensor], downstream: Downstream
) -> Tensor:
    log_temperature = downstream.log_temperature
    temperature = 1.0 if log_temperature is None else log_temperature.exp()
    texts = downstream.captions if downstream.loss == "clip" else downstream.prompts
    images, features = functional_call(model, dict(params), (downstream.images, texts))[:2]
    if downstream.loss == "clip":
        return clip_loss(images, features, temperature)
    assert downstream.loss == "cross_entropy", downstream.loss
    return cross_entropy(images, features, downstream.labels, downstream.class_counts, temperature)


def is_decayed(name: str, param: Tensor) -> bool:
    return param.ndim >= 2 and not any(part in name for part in NEVER_DECAYED)


def adamw(
    params: Parameters, grads: Parameters, moments: Moments, optimizer: Optimizer
) -> tuple[Parameters, Moments]:
    """Do a step of AdamW with decoupled decay, differentiable in `grads`.

    If a second moment is 0, so is its gradient g. Near g = 0 the update is
    c1 g / (sqrt(c2) |g| + eps), with the derivative c1 / eps at g = 0. Autograd returns this
    derivative if the square root is replaced by the constant 0.
    """
    beta1, beta2 = optimizer.betas
    step = moments.step + 1
    stepped, first, second = {}, {}, {}
    for name, param in params.items():
        grad = grads[name]
        first[name] = beta1 * moments.first[name] + (1 - beta1) * grad
        second[name] = beta2 * moments.second[name] + (1 - beta2) * grad**2
        variance = second[name] / (1 - beta2**step)
        positive = variance > 0
        root = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
        update = first[name] / (1 - beta1**step) / (root + optimizer.eps)
        decay = optimizer.weight_decay if is_decayed(name, param) else 0.0
        stepped[name] = param * (1 - optimizer.lr * decay) - optimizer.lr * update
    return stepped, Moments(first, second, step)


def sgd(
    params: Parameters, grads: Parameters, moments: Moments, optimizer: Optimizer
) -> tuple[Parameters, Moments]:
    """Do a step of torch.optim.SGD: decay is added to the gradient, and there is no dampening."""
    stepped, buffers = {}, {}
    for name, param in params.items():
        decay = optimizer.weight_decay if is_decayed(name, param) else 0.0
        grad = grads[name] + decay * param
        old = moments.first[name]
        buffers[name] = grad if moments.step == 0 else optimizer.momentum * old + grad
        stepped[name] = param - optimizer.lr * buffers[name]
    return stepped, Moments(buffers, dict(moments.second), moments.step + 1)


UPDATES: dict[str, Callable[..., tuple[Parameters, Moments]]] = {"adamw": adamw, "sgd": sgd}


def no_moments(params: Mapping[str, Tensor]) -> Moments:
    zeros = {name: torch.zeros_like(param) for name, param in params.items()}
    return Moments(zeros, dict(zeros), 0)


def named_parameters(model: nn.Module) -> Parameters:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def brute_force(
    model: nn.Module,
    params: Mapping[str, Tensor],
    moments: Moments,
    upstream: Upstream,
    weights: Tensor,
    downstream: Downstream,
    optimizer: Optimizer,
    *,
    differentiate: bool = True,
) -> Step:
    """Compute L_down(w) of Eq. 2, and its gradient in w by reverse mode over reverse mode.

    `weights` [B] are positive and need not sum to 1: Eq. 3 is a function of free weights here.
    """
    theta = {name: param.detach().clone().requires_grad_() for name, param in params.items()}
    w = weights.detach().clone().requires_grad_()
    temperature = downstream.log_temperature
    if temperature is not None:
        temperature = temperature.detach().clone().requires_grad_()
    downstream = Downstream(**{**vars(downstream), "log_temperature": temperature})
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        up = upstream_loss(model, theta, upstream, w)
        found = torch.autograd.grad(
            up, list(theta.values()), create_graph=differentiate, materialize_grads=True
        )
        g = dict(zip(theta, found, strict=True))
        stepped, after = UPDATES[optimizer.kind](theta, g, moments, optimizer)
        down = downstream_loss(model, stepped, downstream)
        result: dict[str, Any] = {}
        if differentiate:
            result = _derivatives(down, w, g, stepped, temperature)
    return Step(
        upstream_loss=up.detach(),
        downstream_loss=down.detach(),
        upstream_gradient=_detached(g),
        stepped=_detached(stepped),
        stepped_moments=Moments(_detached(after.first), _detached(after.second), after.step),
        **result,
    )


def _derivatives(
    down: Tensor, w: Tensor, g: Parameters, stepped: Parameters, temperature: Tensor | None
) -> dict[str, Any]:
    scalars = [] if temperature is None else [temperature]
    by_w, *others = torch.autograd.grad(
        down, [w, *stepped.values(), *g.values(), *scalars], materialize_grads=True
    )
    return {
        "weight_gradient": by_w,
        "stepped_gradient": dict(zip(stepped, others, strict=False)),
        "cotangent": dict(zip(g, others[len(stepped) :], strict=False)),
        "temperature_gradient": others[-1] if scalars else None,
    }


def _detached(tensors: Mapping[str, Tensor]) -> Parameters:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def finite_difference(
    model: nn.Module,
    params: Mapping[str, Tensor],
    moments: Moments,
    upstream: Upstream,
    weights: Tensor,
    downstream: Downstream,
    optimizer: Optimizer,
    direction: Tensor,
    size: float = 3e-5,
) -> float:
    """Return the slope of L_down(w + s `direction`) at s = 0, by fourth-order differences.

    The weights are not normalised again. The step `size` of s is small, since AdamW has a kink
    at a gradient of 0 if the second moment is 0 (words that no earlier batch contains).
    """

    def loss(s: float) -> float:
        moved = weights + s * direction
        args = (model, params, moments, upstream, moved, downstream, optimizer)
        return float(brute_force(*args, differentiate=False).downstream_loss)

    near, far = loss(size) - loss(-size), loss(2 * size) - loss(-2 * size)
    return (8 * near - far) / (12 * size)


def warm_moments(
    model: nn.Module,
    params: Mapping[str, Tensor],
    steps: int = 3,
    batch: int = 8,
    seed: int = 100,
    optimizer: Optimizer | None = None,
) -> Moments:
    """Return the moments after `steps` steps of `optimizer` on other random batches.

    θ itself does not change. Words that no batch contains keep moments of exactly 0.
    """
    optimizer = optimizer or Optimizer()
    moments, theta = no_moments(params), dict(params)
    for step in range(steps):
        dtype = params["logit_scale"].dtype
        upstream, weights, downstream = random_batches(batch, seed=seed + step, dtype=dtype)
        args = (model, theta, moments, upstream, weights, downstream, optimizer)
        done = brute_force(*args, differentiate=False)
        theta, moments = done.stepped, done.stepped_moments
    return moments
