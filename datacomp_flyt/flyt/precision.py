"""Precisions of training, and how the towers' Jacobian-vector product is computed in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Tangent = Literal["exact", "central", "one_sided"]
TANGENTS: tuple[Tangent, ...] = ("exact", "central", "one_sided")


@dataclass(frozen=True)
class Precision:
    """Arithmetic of the towers. Parameters, optimizer and losses stay in float32 (or float64).

    Attributes:
        autocast: dtype of matrix products; None for the dtype of the parameters.
        scale_gradients: scale gradients inside the towers, since float16 underflows.
        tangent: default method for Jacobian-vector products; see `Towers.tangent`.
    """

    autocast: torch.dtype | None
    scale_gradients: bool
    tangent: Tangent


PRECISIONS = {
    "fp32": Precision(None, False, "one_sided"),
    "bf16": Precision(torch.bfloat16, False, "exact"),
    "amp": Precision(torch.float16, True, "exact"),
}
"""The default method is the cheapest one whose error is far below the change of the gradient from
batch to batch. Relative errors of ∂L_down/∂w against float64, on small towers
(`python -m benchmarks.flyt_step --errors`): float32 exact 2e-6 to 2e-5, central 6e-5 to 3e-4,
one-sided 1e-3 to 3e-3; autocast to bfloat16 3e-2 to 7e-2, to float16 4e-3 to 1e-2 with each method,
because the gradients have the same error. With autocast, differences are taken of float32 passes,
which cost more than the exact method; differences of 16-bit passes would be noise."""

DIFFERENCE_STEPS = {
    ("central", torch.float64): 1e-6,
    ("one_sided", torch.float64): 1e-8,
    ("central", torch.float32): 1e-4,
    ("one_sided", torch.float32): 3e-5,
}
"""|hv| / |θ| with the smallest error, by method and dtype. Smaller steps increase the rounding
error, larger ones the error of curvature."""
