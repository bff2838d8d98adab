"""The metagradient changes no argument, stops at a bad stage, and bounds memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from torch import Tensor

from datacomp_flyt.flyt.lookahead_adamw import LookaheadAdamW
from datacomp_flyt.flyt.metagradient import Metagradient
from datacomp_flyt.flyt.precision import TANGENTS
from datacomp_flyt.flyt.towers import Towers
from tests.flyt.problems import (
    DOUBLE,
    Problem,
    brute_force,
    cast,
    downstream_of,
    problem,
    solve,
    state_of,
)
from tests.oracles.flyt_inputs import Upstream, small_clip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def upstream_row(given: Problem, row: int, pixel: float) -> Problem:
    """Set a pixel of an upstream image of a problem."""
    images = given.upstream.images.clone()
    images[row, 0, 0, 0] = pixel
    return replace(given, upstream=Upstream(images, given.upstream.texts))


def test_the_result_has_the_documented_shapes() -> None:
    given = problem()
    actual = solve(given)
    assert isinstance(actual, Metagradient)
    assert actual.weight_gradient.shape == (8,)
    scalars = (actual.upstream_loss, actual.downstream_loss, actual.logit_scale_gradient)
    assert [tuple(scalar.shape) for scalar in scalars] == [(), (), ()]
    assert actual.params.keys() == actual.grads.keys() == given.params.keys()


# -------------------------------------------------------------------------- side effects


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for entry in value.values() for tensor in tensors_in(entry)]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors_in(getattr(value, field.name))]
    return []


@pytest.mark.parametrize("pixel", [1.0, float("nan")], ids=["finite", "nan"])
@pytest.mark.parametrize("tangent", TANGENTS)
def test_arguments_are_not_changed(tangent: str, pixel: float) -> None:
    given = upstream_row(problem("cross_entropy_temperature"), 3, pixel)
    arguments: dict[str, Any] = {
        "towers": Towers(small_clip(), 4),
        "params": cast(given.params, DOUBLE),
        "state": state_of(given.moments),
        "images": given.upstream.images.clone(),
        "texts": given.upstream.texts.clone(),
        "log_weights": given.weights.log(),
        "downstream": downstream_of(given.downstream),
    }
    model = arguments["towers"].model
    held = tensors_in(arguments) + list(model.parameters())
    before = [(tensor.clone(), tensor.requires_grad, tensor._version) for tensor in held]
    actual = solve(given, tangent, **arguments)
    assert actual.finite == (pixel == 1.0)
    for tensor, (value, requires_grad, version) in zip(held, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), value.nan_to_num())
        assert (tensor.requires_grad, tensor._version) == (requires_grad, version)
        assert tensor.grad is None
    assert not any(tensor.requires_grad for tensor in tensors_in(actual))
    new = {tensor.data_ptr() for tensor in actual.params.values()}
    assert actual.finite == new.isdisjoint(tensor.data_ptr() for tensor in held)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a later stage ran")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_upstream_image_stops_before_the_step(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(LookaheadAdamW, "step", refuse)
    monkeypatch.setattr(LookaheadAdamW, "pull_back", refuse)
    monkeypatch.setattr(LookaheadAdamW, "next_state", refuse)
    monkeypatch.setattr(Towers, "tangent", refuse)
    given = upstream_row(problem(), 3, value)
    actual = solve(given)
    assert not actual.finite
    assert actual.weight_gradient.shape == (8,)
    assert all(torch.equal(actual.params[name], param) for name, param in given.params.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_downstream_image_stops_before_the_tangent(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(LookaheadAdamW, "next_state", refuse)
    monkeypatch.setattr(Towers, "tangent", refuse)
    given = problem()
    images = given.downstream.images.clone()
    images[1, 2, 3, 4] = value
    actual = solve(replace(given, downstream=replace(given.downstream, images=images)))
    assert not actual.finite
    assert float(actual.upstream_loss) == pytest.approx(float(brute_force(given).upstream_loss))
    assert not actual.downstream_loss.isfinite()


@pytest.mark.parametrize("tangent", TANGENTS)
def test_an_overflow_in_the_last_stage_is_reported(
    monkeypatch: pytest.MonkeyPatch, tangent: str
) -> None:
    plain = Towers.tangent

    def overflowing(*args: Any) -> tuple[Tensor, Tensor]:
        images, texts = plain(*args)
        return images * torch.inf, texts

    monkeypatch.setattr(Towers, "tangent", overflowing)
    assert not solve(problem(), tangent).finite


# ------------------------------------------------------------- no graph, no double backward


class Saved:
    """Counts the entries of the tensors that graphs hold at a time, by saved-tensor hooks."""

    def __init__(self) -> None:
        self.now = self.peak = self.count = 0

    def __enter__(self) -> Saved:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: Held(self, t), Held.take)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


class Held:
    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor, self.size = saved, tensor.detach(), tensor.numel()
        saved.count += 1
        saved.now += self.size
        saved.peak = max(saved.peak, saved.now)

    def take(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.saved.now -= self.size


@pytest.mark.parametrize("tangent", TANGENTS)
def test_the_tangent_keeps_no_graph(monkeypatch: pytest.MonkeyPatch, tangent: str) -> None:
    plain, counts = Towers.tangent, []

    def counted(*args: Any) -> tuple[Tensor, Tensor]:
        with Saved() as saved:
            actual = plain(*args)
        counts.append(saved.count)
        return actual

    monkeypatch.setattr(Towers, "tangent", counted)
    assert solve(problem(), tangent, 4).finite
    assert counts == [0]


def peak(batch: int, micro_batch_size: int | None, tangent: str = "exact") -> int:
    """Return the largest number of entries that graphs hold at a time during a call."""
    given = problem(batch=batch)
    with Saved() as saved:
        assert solve(given, tangent, micro_batch_size).finite
    assert saved.now == 0
    return saved.peak


@pytest.mark.parametrize("tangent", TANGENTS)
def test_memory_does_not_grow_with_the_batch(tangent: str) -> None:
    """With micro-batches of 1, graphs hold as much at B = 32 as at 8; without, four times as much.

    The losses hold a few more tensors [B, D] and [B, B].
    """
    small, large = peak(8, 1, tangent), peak(32, 1, tangent)
    assert large - small <= 0.02 * peak(8, None, tangent)
    assert small < 0.6 * peak(8, None, tangent)
    assert peak(32, None, tangent) > 2 * peak(8, None, tangent)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("tangent", TANGENTS)
def test_nothing_is_differentiated_twice(
    monkeypatch: pytest.MonkeyPatch, tangent: str, micro_batch_size: int | None
) -> None:
    plain, calls = torch.autograd.grad, []

    def once(*args: Any, **kwargs: Any) -> Any:
        assert len(args) < 5
        assert not kwargs.get("create_graph")
        actual = plain(*args, **kwargs)
        assert not any(part is not None and part.requires_grad for part in actual)
        calls.append(actual)
        return actual

    monkeypatch.setattr(torch.autograd, "grad", once)
    monkeypatch.setattr(torch.autograd, "backward", refuse)
    monkeypatch.setattr(Tensor, "backward", refuse)
    for name in ("grad", "vjp", "vmap", "jacrev", "hessian", "grad_and_value"):
        monkeypatch.setattr(torch.func, name, refuse)
    actual = solve(problem(), tangent, micro_batch_size)
    assert actual.finite
    assert calls
