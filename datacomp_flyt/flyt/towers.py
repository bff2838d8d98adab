"""The two towers of a CLIP model as functions of their parameters (for FLYT, Appendix A).

`Towers` has three operations on a batch of images and texts, all at parameters θ:

- `embed`: the embeddings f_i, with a function that pulls a gradient in them back to θ (the
  vector-Jacobian product sum_i ḡ_i J_i)
- `features`: the embeddings alone
- `tangent`: the Jacobian-vector products u_i = J_i v for a direction v in parameter space

Each runs in micro-batches, and keeps only the [b, D] results of those that it has finished.

Legend: b images and k texts of this rank, D embedding, L tokens, θ parameters, f_i embedding of
row i, J_i Jacobian of f_i in θ, τ logit scale.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from datacomp_flyt.flyt.lookahead_adamw import Tensors, norm
from datacomp_flyt.flyt.precision import Tangent
from datacomp_flyt.flyt.weighted_loss import full_precision

Inputs = tuple[Tensor | None, Tensor | None]
"""Images [b, 3, H, W] and tokens [k, L]; None for a tower that is not run."""

Features = tuple[Tensor, Tensor]
"""Image embeddings [b, D] and text embeddings [k, D] of unit norm, in float32 or float64."""


def _functional_call(model: nn.Module, params: Mapping[str, Tensor], inputs: Inputs) -> Any:
    """Call `torch.func.functional_call`, imported here because PyTorch 1.13 lacks it."""
    from torch.func import functional_call

    return functional_call(model, dict(params), inputs)


def _math_attention() -> AbstractContextManager[None]:
    """Select the only attention kernel with a forward-mode rule. Needs PyTorch 2.3."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return kernel


@dataclass(frozen=True)
class Embedding:
    """Embeddings at θ.

    Attributes:
        features: the embeddings, without a graph.
        pull_back: maps gradients in the features to gradients in θ, by name. It frees the graph,
            so it can be called once.
    """

    features: Features
    pull_back: Callable[[Features], Tensors]


class Towers:
    """A CLIP model whose parameters are an argument of each call.

    The model is in evaluation mode. Dropout and batch statistics would change f from pass to pass,
    but Appendix A differentiates one function f in several passes.
    """

    def __init__(
        self,
        model: nn.Module,
        micro_batch_size: int | None = None,
        autocast: torch.dtype | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        """
        Args:
            model: `model(images, texts)` returns image and text embeddings of unit norm and the
                logit scale, as open_clip.CLIP does; an input of None gives an output of None.
            micro_batch_size: rows that go through a tower at once; None for all rows.
            autocast: dtype of the matrix products; None for the dtype of the parameters.
            gradient_scale: factor on gradients inside the towers, against float16 underflow.
        """
        self.model = model.eval()
        self.micro_batch_size = micro_batch_size
        self.autocast = autocast
        self.gradient_scale = gradient_scale

    def params(self) -> Tensors:
        """Return the trainable parameters, by name, without a graph."""
        return {
            name: param.detach()
            for name, param in self.model.named_parameters()
            if param.requires_grad
        }

    def logit_scale(self, params: Tensors) -> Tensor:
        """Compute τ [], differentiable in the parameters."""
        return full_precision(_functional_call(self.model, params, (None, None))[2])

    def features(
        self, params: Tensors, images: Tensor, texts: Tensor, use_autocast: bool = True
    ) -> Features:
        """Compute embeddings without a graph, and without autocast unless `use_autocast`."""
        with torch.no_grad():
            parts = [
                torch.cat(
                    [self._tower(params, chunk, use_autocast) for chunk in self._split(inputs)]
                )
                for inputs in (images, texts)
            ]
        return parts[0], parts[1]

    def embed(self, params: Tensors, images: Tensor, texts: Tensor) -> Embedding:
        """Compute embeddings and their pull-back.

        If a tower's rows fit into one micro-batch, its graph is kept for the pull-back. Otherwise
        the pull-back computes each micro-batch again.
        """
        kept: list[tuple[Tensors, Tensor]] = []  # leaves and output of each tower with a graph
        features = []
        for inputs in (images, texts):
            chunks = self._split(inputs)
            if len(chunks) > 1:
                with torch.no_grad():
                    parts = [self._tower(params, chunk) for chunk in chunks]
            else:
                leaves = _leaves(params)
                parts = [self._tower(leaves, chunk) for chunk in chunks]
                kept.append((leaves, parts[0]))
            features.append(torch.cat([part.detach() for part in parts]))

        def pull_back(gradients: Features) -> Tensors:
            total: Tensors = {}
            graphs = list(kept)
            for inputs, gradient in zip((images, texts), gradients, strict=True):
                chunks = self._split(inputs)
                pieces = self._split(gradient)
                for chunk, piece in zip(chunks, pieces, strict=True):
                    if len(chunks) > 1:
                        leaves = _leaves(params)
                        output = self._tower(leaves, chunk)
                    else:
                        leaves, output = graphs.pop(0)
                    self._accumulate(total, leaves, output, piece)
            kept.clear()
            return {
                name: total.pop(name) if name in total else torch.zeros_like(param)
                for name, param in params.items()
            }

        return Embedding((features[0], features[1]), pull_back)

    def tangent(
        self,
        params: Tensors,
        direction: Tensors,
        images: Tensor,
        texts: Tensor,
        features: Features,
        method: Tangent,
        step: float,
    ) -> Features:
        """Compute the Jacobian-vector products u_i = J_i v of all rows.

        Args:
            params: θ, by name.
            direction: v, by name.
            images, texts: the rows [b, 3, H, W], [k, L].
            features: the embeddings f at θ, used by the one-sided difference.
            method: `exact` is forward-mode differentiation, which costs about 3 forward passes;
                `central` is (f(θ + hv) - f(θ - hv)) / 2h; `one_sided` is (f(θ + hv) - f(θ)) / h.
            step: |hv| / |θ| of the differences.

        Returns:
            Tangents of the image embeddings [b, D] and of the text embeddings [k, D].
        """
        if method == "exact":
            return self._forward_mode(params, direction, images, texts)
        length = norm(direction)
        h = torch.where(length > 0, step * norm(params) / length, 1.0)
        ahead = self._moved(params, direction, h, images, texts)
        if method == "one_sided":
            behind, width = features, h
            if self.autocast is not None:
                behind = self._moved(params, direction, 0 * h, images, texts)
        else:
            behind, width = self._moved(params, direction, -h, images, texts), 2 * h
        return (ahead[0] - behind[0]) / width, (ahead[1] - behind[1]) / width

    def logit_scale_tangent(self, params: Tensors, direction: Tensors) -> Tensor:
        """Compute the derivative of τ along v []."""
        leaves = _leaves(params)
        scale = self.logit_scale(leaves)
        tangent = torch.zeros_like(scale)
        if not scale.requires_grad:  # its parameter is frozen
            return tangent
        gradients = torch.autograd.grad(scale, list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                tangent += (direction[name] * gradient).sum()
        return tangent

    def _forward_mode(
        self, params: Tensors, direction: Tensors, images: Tensor, texts: Tensor
    ) -> Features:
        """Compute J_i v by forward-mode differentiation (dual numbers)."""
        scale = torch.ones(())
        if self.autocast is not None:
            # Scale v to the length of θ, since float16 has a small range; J_i v is linear in v.
            length = norm(direction)
            scale = torch.where(length > 0, norm(params) / length, 1.0)
            direction = {name: v * scale for name, v in direction.items()}
        tangents: list[Tensor] = []
        with torch.no_grad(), _math_attention(), forward_ad.dual_level(), _quiet_jit():
            duals = {
                name: forward_ad.make_dual(param, direction[name]) for name, param in params.items()
            }
            for inputs in (images, texts):
                parts = []
                for chunk in self._split(inputs):
                    value, tangent = forward_ad.unpack_dual(self._tower(duals, chunk))
                    parts.append(torch.zeros_like(value) if tangent is None else tangent)
                tangents.append(torch.cat(parts).div_(scale))
        return tangents[0], tangents[1]

    def _moved(
        self, params: Tensors, direction: Tensors, h: Tensor, images: Tensor, texts: Tensor
    ) -> Features:
        """Compute f at θ + hv without autocast, whose rounding would exceed the difference."""
        moved = {name: torch.addcmul(p, direction[name], h) for name, p in params.items()}
        return self.features(moved, images, texts, use_autocast=False)

    def _tower(
        self, params: Mapping[str, Tensor], chunk: Tensor, use_autocast: bool = True
    ) -> Tensor:
        """Embed one micro-batch of images (floating point) or of texts (integer tokens)."""
        if not len(chunk):  # a rank may hold no class prompt
            return self._tower(params, chunk.new_zeros((1, *chunk.shape[1:])), use_autocast)[:0]
        is_image = chunk.is_floating_point()
        inputs: Inputs = (chunk, None) if is_image else (None, chunk)
        with self._arithmetic(chunk.device.type, self.autocast if use_autocast else None):
            output = _functional_call(self.model, params, inputs)[0 if is_image else 1]
        return full_precision(output)

    @staticmethod
    @contextlib.contextmanager
    def _arithmetic(device: str, autocast: torch.dtype | None) -> Iterator[None]:
        # The fused inference path of PyTorch rounds differently from the path with a graph, and
        # it has no forward-mode rule.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.autocast(device, autocast, enabled=autocast is not None):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)

    def _accumulate(
        self, total: Tensors, leaves: Tensors, output: Tensor, gradient: Tensor
    ) -> None:
        """Add the gradient of one micro-batch in the parameters to `total`."""
        if not output.requires_grad:  # the tower is frozen
            return
        gradients = torch.autograd.grad(
            output,
            list(leaves.values()),
            gradient * self.gradient_scale,
            allow_unused=True,
        )
        for name, value in zip(leaves, gradients, strict=True):
            if value is not None:
                value = value / self.gradient_scale if self.gradient_scale != 1 else value
                total[name] = total[name].add_(value) if name in total else value

    def _split(self, rows: Tensor) -> list[Tensor]:
        size = self.micro_batch_size or max(len(rows), 1)
        return list(rows.split(size))


@contextlib.contextmanager
def _quiet_jit() -> Iterator[None]:
    """Ignore the warning that PyTorch's own forward-mode rules use the deprecated torch.jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


def _leaves(params: Mapping[str, Tensor]) -> Tensors:
    return {name: param.detach().requires_grad_() for name, param in params.items()}
