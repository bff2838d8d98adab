"""E-FLYT's scoring head, one example and one hidden unit at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def silu(x: float) -> float:
    """Return x times the logistic function of x."""
    if x < 0:
        return x * math.exp(x) / (1 + math.exp(x))
    return x / (1 + math.exp(-x))


def linear(weight: list[list[float]], bias: list[float], z: list[float]) -> list[float]:
    return [
        math.fsum([*(w * x for w, x in zip(row, z, strict=True)), b])
        for row, b in zip(weight, bias, strict=True)
    ]


def unit(row: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(float(x) ** 2 for x in row))
    return [float(x) / length for x in row]


def glu_score(tensors: Mapping[str, list], z: list[float]) -> float:
    """Return the score of one example's features (FLYT, section 3.4 and appendix C.7).

    ``tensors`` has lists by the tensor names of the published file, without their prefix.
    """
    layer = 0
    while f"layers.{layer}.w1.weight" in tensors:

        def apply(part: str, values: list[float], layer: int = layer) -> list[float]:
            name = f"layers.{layer}.{part}"
            return linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"], values)

        gate, value = apply("w1", z), apply("w3", z)
        z = apply("w2", [silu(a) * b for a, b in zip(gate, value, strict=True)])
        layer += 1
    (score,) = z
    return score


def e_flyt_score(
    tensors: Mapping[str, list], image: Sequence[float], text: Sequence[float]
) -> float:
    """Return the score of one example; the head takes its unit image, then its unit text."""
    return glu_score(tensors, unit(image) + unit(text))


def cosine_start(d: int) -> dict[str, list]:
    """Return weights whose score is nearly i . t, without the noise (FLYT, appendix C.7)."""
    width = 2 * d
    w1 = [[0.0] * width for _ in range(width)]
    w3 = [[0.0] * width for _ in range(width)]
    for r in range(d):
        w1[r][r], w3[r][d + r] = 1.0, 1.0
        w1[d + r][d + r], w3[d + r][r] = -1.0, -1.0
    return {
        "layers.0.w1.weight": w1,
        "layers.0.w1.bias": [0.0] * width,
        "layers.0.w3.weight": w3,
        "layers.0.w3.bias": [0.0] * width,
        "layers.0.w2.weight": [[1.0] * width],
        "layers.0.w2.bias": [0.0],
    }
