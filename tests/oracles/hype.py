"""HYPE's scores, one pair at a time, in float64 (HYPE, ECCV 2024, and its public code).

The public code clips at ±(1 - 1e-8), which in its float32 is ±1. Here the bounds are ±1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

EPS = 1e-8
K = 0.1

Vector = Sequence[float]


def dot(x: Vector, y: Vector) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def lift(v: Vector, c: float) -> tuple[list[float], float]:
    """Map a tangent vector to the hyperboloid; return its space and time components."""
    r = math.sqrt(c) * math.sqrt(dot(v, v))
    scale = math.sinh(clip(r, 1e-8, math.asinh(2**15))) / max(r, 1e-8)
    x = [scale * float(a) for a in v]
    return x, math.sqrt(1 / c + dot(x, x))


def inner(v: Vector, u: Vector, c: float) -> float:
    (x, x0), (y, y0) = lift(v, c), lift(u, c)
    return dot(x, y) - x0 * y0


def distance(v: Vector, u: Vector, c: float) -> float:
    return math.acosh(max(-c * inner(v, u, c), 1.0)) / math.sqrt(c)


def aperture(v: Vector, c: float) -> float:
    x, _ = lift(v, c)
    return math.asin(clip(2 * K / (math.sqrt(c) * math.sqrt(dot(x, x)) + EPS), -1, 1))


def exterior(v: Vector, u: Vector, c: float) -> float:
    (x, x0), (_, y0) = lift(v, c), lift(u, c)
    product = c * inner(v, u, c)
    below = math.sqrt(dot(x, x)) * math.sqrt(max(product**2 - 1, EPS)) + EPS
    return math.acos(clip((y0 + x0 * product) / below, -1, 1))


def entailed(v: Vector, u: Vector, c: float) -> float:
    return exterior(v, u, c) - aperture(v, c)


def hype_scores(
    image: Vector,
    text: Vector,
    reference_images: Sequence[Vector],
    reference_texts: Sequence[Vector],
    c: float,
) -> tuple[float, float, float]:
    """Return an example's -d_L, image specificity and text specificity."""
    of_image = [entailed(t, image, c) for t in reference_texts]
    of_text = [entailed(text, i, c) for i in reference_images]
    return (
        -distance(image, text, c),
        math.fsum(of_image) / len(of_image),
        math.fsum(of_text) / len(of_text),
    )
