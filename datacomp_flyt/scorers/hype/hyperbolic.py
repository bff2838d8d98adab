"""Geometry of the Lorentz model: the hyperboloid <x, x>_L = -1/c of curvature -c.

MERU (Desai et al., arXiv:2304.09172, sections 2 and 3) and HYPE (Kim et al., arXiv:2404.17507) use
it. A point has space components [n, d] and a time component [n] that follows from them. Models
output tangent vectors at the origin (0, 1/sqrt(c)). All functions compute in the type of their
arguments; the angles of near points cancel, so use float64 where that matters.

HYPE's code (github.com/naver-ai/hype, hyperbolic.py) clips sines and cosines to ±(1 - 1e-8), which
is ±1 in its float32; here they are clipped to ±1 in float64, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-8
LARGEST_RADIUS = math.asinh(2.0**15)
"""The largest length of a tangent vector times sqrt(c): beyond it sinh would overflow."""
CONE_CONSTANT = 0.1
"""K: cones of points nearer to the origin than about 2K are half-spaces."""
PAIRS_AT_ONCE = 2**22
"""The number of pairs of points that are held in memory at once."""


class Points(NamedTuple):
    """Points of the hyperboloid.

    Attributes:
        space: [n, d].
        time: [n], sqrt(1/c + |space|^2).
    """

    space: Tensor
    time: Tensor


def exponential_map(v: Tensor, c: float) -> Points:
    """Map tangent vectors at the origin to points (MERU, section 3).

    With r = sqrt(c) |v|: space = sinh(min(r, asinh(2^15))) v / r, and 0 for v = 0.

    Args:
        v: tangent vectors [n, d].
        c: minus the curvature, above 0.
    """
    r = math.sqrt(c) * v.norm(dim=-1, keepdim=True)
    space = r.clamp(EPSILON, LARGEST_RADIUS).sinh() * v / r.clamp(min=EPSILON)
    return Points(space, (1 / c + space.square().sum(-1)).sqrt())


def lorentz_distance(x: Points, y: Points, c: float) -> Tensor:
    """Return distances [n] of the pairs (x_i, y_i), acosh(-c <x, y>_L) / sqrt(c) (MERU, section 2).

    <x, y>_L = x . y - x_time y_time. Rounding may put -c <x, y>_L below 1; it then counts as 1, so
    points that coincide are at distance 0.
    """
    return (-c * _inner(x, y)).clamp(min=1).acosh() / math.sqrt(c)


def half_aperture(x: Points, c: float) -> Tensor:
    """Return half-apertures [n] of the entailment cones at x in radians, asin(2K / (sqrt(c) |x|)).

    π/2 where |x| is below 2K / sqrt(c) (MERU, section 3).
    """
    ratio: Tensor = 2 * CONE_CONSTANT / (math.sqrt(c) * x.space.norm(dim=-1) + EPSILON)
    return ratio.clamp(max=1).asin()


def exterior_angle(x: Points, y: Points, c: float) -> Tensor:
    """Return exterior angles [n] at x_i of the triangles origin, x_i, y_i in radians (MERU, 3).

    acos((y_time + x_time c <x, y>_L) / (|x| sqrt((c <x, y>_L)^2 - 1))); 0 where y lies behind x,
    seen from the origin, and π where y lies on the way to x. π/2 where x is the origin or y.
    """
    return _angle(_inner(x, y), x.space.norm(dim=-1), x.time, y.time, c)


def entailment(x: Points, y: Points, c: float) -> Tensor:
    """Return the angle [n] of y_i outside of the cone at x_i in radians; negative inside (HYPE).

    exterior_angle(x, y) - half_aperture(x), which MERU's loss cuts off at 0.
    """
    return exterior_angle(x, y, c) - half_aperture(x, c)


def mean_over_cones(cones: Points, y: Points, c: float) -> Tensor:
    """Return [m]: the mean over i of entailment(cones_i, y_j), of cones [n] and points y [m]."""
    total = torch.zeros_like(y.time)
    for part in _parts(cones, len(y.time)):
        total += _entailments(part, y, c).sum(0)
    return total / len(cones.time)


def mean_over_points(x: Points, points: Points, c: float) -> Tensor:
    """Return [n]: the mean over j of entailment(x_i, points_j), of cones at x [n], points [m]."""
    total = torch.zeros_like(x.time)
    for part in _parts(points, len(x.time)):
        total += _entailments(x, part, c).sum(1)
    return total / len(points.time)


def _entailments(x: Points, y: Points, c: float) -> Tensor:
    """Return entailment(x_i, y_j), [n, m]."""
    x_time, x_norm = x.time[:, None], x.space.norm(dim=-1, keepdim=True)
    inner = x.space @ y.space.T - x_time * y.time
    return _angle(inner, x_norm, x_time, y.time, c) - half_aperture(x, c)[:, None]


def _inner(x: Points, y: Points) -> Tensor:
    return (x.space * y.space).sum(-1) - x.time * y.time


def _angle(inner: Tensor, x_norm: Tensor, x_time: Tensor, y_time: Tensor, c: float) -> Tensor:
    root = ((c * inner).square() - 1).clamp(min=EPSILON).sqrt()
    cosine = (y_time + x_time * c * inner) / (x_norm * root + EPSILON)
    return cosine.clamp(-1, 1).acos()


def _parts(points: Points, others: int) -> list[Points]:
    """Split points so that a part has at most `PAIRS_AT_ONCE` pairs with the others."""
    rows = max(PAIRS_AT_ONCE // max(others, 1), 1)
    return [
        Points(*part)
        for part in zip(points.space.split(rows), points.time.split(rows), strict=True)
    ]
