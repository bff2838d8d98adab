"""Number formats of training, and by which way each takes the towers' tangent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Tangent = Literal["exact", "central", "one_sided"]
TANGENTS: tuple[Tangent, ...] = ("exact", "central", "one_sided")


@dataclass(frozen=True)
class Precision:
    """How the towers compute. Parameters, optimizer and losses stay in float32 (or float64).

    Attributes:
        autocast: what matrix products are done in; None for the parameters' own type.
        scale_gradients: whether gradients need a scale, lest they vanish in float16.
        tangent: the default way to the tangent.
    """

    autocast: torch.dtype | None
    scale_gradients: bool
    tangent: Tangent


PRECISIONS = {
    "fp32": Precision(None, False, "one_sided"),
    "bf16": Precision(torch.bfloat16, False, "exact"),
    "amp": Precision(torch.float16, True, "exact"),
}
"""Relative errors of dL/dw against float64, on small towers: float32 exact 2e-6 to 2e-5, central
6e-5 to 3e-4, one-sided 1e-3 to 3e-3; autocast to bfloat16 3e-2 to 7e-2, to float16 4e-3 to 1e-2,
whatever the tangent, since the gradients are as wrong. All that is far below the gradient's change
from batch to batch, so float32 takes the cheapest way. In 16 bits differences would be noise; there
they are taken with float32 passes, which costs more than the exact way.
(`benchmarks/flyt_step.py --errors` measures them.)"""

DIFFERENCE_STEPS = {
    ("central", torch.float64): 1e-6,
    ("one_sided", torch.float64): 1e-8,
    ("central", torch.float32): 1e-4,
    ("one_sided", torch.float32): 3e-5,
}
"""|hv| / |θ| with the smallest error, between rounding (too small) and curvature (too large)."""
