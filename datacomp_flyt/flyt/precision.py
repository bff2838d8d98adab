"""The precisions of training, each with its method for the towers' Jacobian-vector product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Tangent = Literal["exact", "central", "one_sided"]
TANGENTS: tuple[Tangent, ...] = ("exact", "central", "one_sided")


@dataclass(frozen=True)
class Precision:
    """The arithmetic of the towers.

    The parameters, the optimizer and the losses stay in float32 (or float64).

    Attributes:
        autocast: the dtype of matrix products; None for the dtype of the parameters.
        scale_gradients: whether gradients are scaled inside the towers, so that they do not
            underflow in float16.
        tangent: the default method for Jacobian-vector products; see `Towers.tangent`.
    """

    autocast: torch.dtype | None
    scale_gradients: bool
    tangent: Tangent


PRECISIONS = {
    "fp32": Precision(None, False, "one_sided"),
    "bf16": Precision(torch.bfloat16, False, "exact"),
    "amp": Precision(torch.float16, True, "exact"),
}
"""The precisions by the name in `--precision`.

The default method of a precision is the cheapest one whose error is far below the change of the
gradient between batches. `python -m benchmarks.flyt_step --errors` measures the relative error of
∂L_down/∂w on small towers, compared with float64:

    float32: exact             2e-6 to 2e-5
    float32: central           6e-5 to 3e-4
    float32: one-sided         1e-3 to 3e-3
    bfloat16, all methods      3e-2 to 7e-2
    float16, all methods       4e-3 to 1e-2

In 16 bits all methods have the same error, since the gradients themselves have it. There the exact
method is the cheapest as well: differences of 16-bit passes would be noise, so differences are
taken of float32 passes, which cost more.
"""

DIFFERENCE_STEPS = {
    ("central", torch.float64): 1e-6,
    ("one_sided", torch.float64): 1e-8,
    ("central", torch.float32): 1e-4,
    ("one_sided", torch.float32): 3e-5,
}
"""The step |hv| / |θ| with the smallest error, by method and dtype.

A smaller step increases the rounding error; a larger one increases the error that comes from the
curvature of the function.
"""
