"""The geometry, against the loop over pairs and the specification's vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from hypothesis import given
from hypothesis import strategies as st

from datacomp_flyt.scorers.hype import hyperbolic
from datacomp_flyt.scorers.hype.hyperbolic import (
    Points,
    entailment,
    exponential_map,
    exterior_angle,
    half_aperture,
    lorentz_distance,
    mean_over_cones,
    mean_over_points,
)
from tests.oracles import hype as oracle
from tests.scorers.hype.made_hype import made_vectors
from tests.tolerances import float_bound

C = 0.5
IMAGES = torch.tensor([[0.3, 0.4], [1, -0.5]], dtype=torch.float64)
TEXTS = torch.tensor([[0.2, 0.1], [0.6, 0.9]], dtype=torch.float64)


def pairs(x: Points, y: Points) -> tuple[Points, Points]:
    """Every x with every y, in the order of rows."""
    n, m = len(x.time), len(y.time)
    return (
        Points(*(part.repeat_interleave(m, 0) for part in x)),
        Points(y.space.repeat(n, 1), y.time.repeat(n)),
    )


def test_vectors_of_the_specification() -> None:
    images, texts = exponential_map(IMAGES, C), exponential_map(TEXTS, C)
    for found, wanted in (
        (
            -lorentz_distance(*pairs(images, texts), C),
            [-0.31688808, -0.58322701, -1.00325318, -1.53133436],
        ),
        (
            entailment(*pairs(texts, images), C),
            [-0.77498334, -0.4295761, 2.85444605, 2.17468218],
        ),
        (mean_over_cones(texts, images, C), [1.03973135, 0.87255304]),
        (mean_over_points(texts, images, C), [-0.60227972, 2.51456411]),
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("c", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("scale", [1e-3, 0.05, 0.5, 4.0])
def test_pairs_are_those_of_the_loop(c: float, scale: float) -> None:
    v, u = made_vectors(9, 6, 1, scale), made_vectors(9, 6, 2, scale)
    x, y = exponential_map(v, c), exponential_map(u, c)
    lifted = [oracle.lift(row, c) for row in v.tolist()]
    np.testing.assert_allclose(x.space, [space for space, _ in lifted], rtol=1e-12)
    np.testing.assert_allclose(x.time, [time for _, time in lifted], rtol=1e-12)
    rows = list(zip(v.tolist(), u.tolist(), strict=True))
    for found, function in (
        (lorentz_distance(x, y, c), oracle.distance),
        (exterior_angle(x, y, c), oracle.exterior),
        (entailment(x, y, c), oracle.entailed),
    ):
        wanted = [function(a, b, c) for a, b in rows]
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-8)
    wanted = [oracle.aperture(a, c) for a, _ in rows]
    np.testing.assert_allclose(half_aperture(x, c), wanted, rtol=1e-12)


def test_angles_of_near_points_are_those_of_the_loop() -> None:
    """The formula's epsilon bounds them: they tend to π/2."""
    v = made_vectors(20, 6, 1)
    u = v + made_vectors(20, 6, 2, 3e-6)
    found = exterior_angle(exponential_map(v, C), exponential_map(u, C), C)
    rows = zip(v.tolist(), u.tolist(), strict=True)
    np.testing.assert_allclose(found, [oracle.exterior(*row, C) for row in rows], atol=1e-6)
    assert 0.01 < float((found - math.pi / 2).abs().max()) < 0.3


@given(st.floats(0.05, 20), st.floats(-math.pi, math.pi), st.floats(0.01, 5), st.floats(0.1, 10))
def test_distances_and_angles_at_the_origin(r: float, turn: float, s: float, c: float) -> None:
    """Known without the formulas: lengths of tangent vectors, and the law of cosines."""
    r, s = r / math.sqrt(c), s / math.sqrt(c)
    v = torch.tensor([[r, 0.0]], dtype=torch.float64)
    u = torch.tensor([[s * math.cos(turn), s * math.sin(turn)]], dtype=torch.float64)
    x, y = exponential_map(v, c), exponential_map(u, c)
    origin = exponential_map(torch.zeros_like(v), c)
    assert float(lorentz_distance(origin, x, c)) == pytest.approx(
        min(r, 11.09 / math.sqrt(c)), 1e-3
    )
    if r * math.sqrt(c) > 8:
        return
    d, k = float(lorentz_distance(x, y, c)), math.sqrt(c)
    assert d == pytest.approx(float(lorentz_distance(y, x, c)))
    cosine = (math.cosh(k * r) * math.cosh(k * d) - math.cosh(k * s)) / (
        math.sinh(k * r) * math.sinh(k * d) or 1.0
    )
    if d * k > 0.1 and abs(cosine) < 0.999:
        inside = math.acos(cosine)
        assert float(exterior_angle(x, y, c)) == pytest.approx(math.pi - inside, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_that_coincide(dtype: torch.dtype) -> None:
    """Equal points have distance 0 and finite entailment; the public code's acosh gives NaN."""
    v = made_vectors(2000, 768, 3, 0.05).to(dtype)
    x = exponential_map(v, C)
    again = exponential_map(v.clone(), C)
    distances = lorentz_distance(x, again, C)
    assert distances.dtype == dtype
    assert float(distances.min()) == 0
    # near 1 acosh(1 + d) is sqrt(2 d): the root of the error of a difference of two sums
    sums = float((C * (x.space.square().sum(1) + x.time.square())).max())
    assert float(distances.max()) < math.sqrt(2 * float_bound(dtype, sums, 768 + 4) / C)
    assert entailment(x, again, C).isfinite().all()
    if dtype == torch.float64:
        torch.testing.assert_close(
            exterior_angle(x, again, C), torch.full_like(x.time, math.pi / 2), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("c", [0.1, 0.5, 3.0])
def test_zero_vectors(c: float) -> None:
    v = torch.zeros((1, 4), dtype=torch.float64)
    u = made_vectors(1, 4, 5)
    origin, x = exponential_map(v, c), exponential_map(u, c)
    assert origin.space.tolist() == [[0] * 4]
    assert float(origin.time) == pytest.approx(1 / math.sqrt(c))
    assert float(half_aperture(origin, c)) == pytest.approx(math.pi / 2, abs=1e-12)
    assert float(exterior_angle(origin, x, c)) == pytest.approx(math.pi / 2, abs=1e-6)
    assert float(exterior_angle(x, origin, c)) == pytest.approx(math.pi, abs=1e-3)  # of epsilon
    bound = math.sqrt(2 * float_bound("float64", 1, 4 + 4) / c)  # as of points that coincide
    assert float(lorentz_distance(origin, origin, c)) == pytest.approx(0, abs=bound)
    assert float(lorentz_distance(origin, x, c)) == pytest.approx(float(u.norm()))
    for function, found in (
        (oracle.entailed, entailment(origin, x, c)),
        (lambda a, b, c: oracle.entailed(b, a, c), entailment(x, origin, c)),
    ):
        assert float(found) == pytest.approx(function([0] * 4, u[0].tolist(), c), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_that_are_too_long(dtype: torch.dtype) -> None:
    x = exponential_map(torch.tensor([[3e3, 4e3], [30, 40]], dtype=dtype), 1.0)
    torch.testing.assert_close(x.space[0], x.space[1])
    assert x.space[0].tolist() == pytest.approx([0.6 * 2**15, 0.8 * 2**15], rel=1e-5)
    assert lorentz_distance(x, exponential_map(-IMAGES.to(dtype), 1.0), 1.0).isfinite().all()


def test_float32_is_near_float64() -> None:
    v, u = made_vectors(500, 64, 6, 0.05), made_vectors(500, 64, 7, 0.05)
    x, y = exponential_map(v, C), exponential_map(u, C)
    near = [exponential_map(part.float(), C) for part in (v, u)]
    for function, tolerance in ((lorentz_distance, 1e-5), (entailment, 1e-4)):
        found = function(*near, C)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), function(x, y, C), atol=tolerance, rtol=0)


@pytest.mark.parametrize("pairs_at_once", [1, 7, 64, 1 << 22])
def test_means_over_a_set(monkeypatch: pytest.MonkeyPatch, pairs_at_once: int) -> None:
    """However few pairs are in memory at once."""
    monkeypatch.setattr(hyperbolic, "PAIRS_AT_ONCE", pairs_at_once)
    v, references = made_vectors(7, 5, 8), made_vectors(23, 5, 9, 0.4)
    x, others = exponential_map(v, C), exponential_map(references, C)
    for found, cone_first in (
        (mean_over_points(x, others, C), True),
        (mean_over_cones(others, x, C), False),
    ):
        wanted = [
            np.mean(
                [
                    oracle.entailed(*((a, b) if cone_first else (b, a)), C)
                    for b in references.tolist()
                ]
            )
            for a in v.tolist()
        ]
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_memory_is_bounded() -> None:
    """Pairs in memory at once, of a set that has more."""
    seen = []

    def note(x: Points, y: Points, c: float) -> torch.Tensor:
        seen.append(len(x.time) * len(y.time))
        return pairs_of(x, y, c)

    pairs_of = hyperbolic._entailments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyperbolic, "_entailments", note)
        patch.setattr(hyperbolic, "PAIRS_AT_ONCE", 1000)
        x, many = (exponential_map(made_vectors(rows, 3, rows), C) for rows in (30, 500))
        mean_over_points(x, many, C)
        mean_over_cones(many, x, C)
    assert sum(seen) == 2 * 30 * 500
    assert max(seen) <= 1000


def test_no_points() -> None:
    none = exponential_map(torch.empty((0, 3)), C)
    some = exponential_map(torch.ones((2, 3)), C)
    assert mean_over_points(none, some, C).shape == (0,)
    assert mean_over_cones(some, none, C).shape == (0,)
