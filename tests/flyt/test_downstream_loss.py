"""The downstream losses of C.8 and C.9, whole and in parts, against the oracle's loops."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import Tensor

from datacomp_flyt.flyt.downstream_loss import (
    INITIAL_LOG_TEMPERATURE,
    CrossEntropy,
    DownstreamClipLoss,
)
from tests.oracles.flyt import clip_loss, cross_entropy

DOUBLE = torch.float64
ROWS, WIDTH = 8, 6
ALL = slice(None)
TASKS = [(5,), (3, 2), (1, 4, 2)]
PARTITIONS = [
    [slice(0, 8)],
    [slice(0, 3), slice(3, 3), slice(3, 8)],
    [slice(row, row + 1) for row in range(8)],
]


def unit_rows(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, WIDTH, generator=generator, dtype=DOUBLE), dim=-1)


def labels_of(counts: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(len(counts))
    labels = torch.randint(0, sum(counts), (ROWS,), generator=generator)
    labels[0], labels[1] = 0, sum(counts) - 1  # the first class and the last
    return labels


def ours_for(counts: tuple[int, ...]) -> CrossEntropy:
    tasks = torch.repeat_interleave(torch.tensor(counts)) if len(counts) > 1 else None
    return CrossEntropy(labels_of(counts), tasks)


def value_and_gradients(loss, images, texts, scale) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (images, texts, scale)]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def assert_all_close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...], rtol: float) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("counts", TASKS, ids=str)
def test_cross_entropy_equals_the_oracles(counts: tuple[int, ...], temperature: float) -> None:
    given = (unit_rows(ROWS, 1), unit_rows(sum(counts), 2), torch.tensor(temperature).double())
    loss, labels = ours_for(counts), labels_of(counts)
    ours = value_and_gradients(lambda u, v, t: loss(u, v, t, ALL), *given)
    expected = value_and_gradients(lambda u, v, t: cross_entropy(u, v, labels, counts, t), *given)
    assert_all_close(ours, expected, 1e-10)


def test_one_task_gives_pytorchs_loss_and_tasks_of_one_class_give_0() -> None:
    images, classes, tau = unit_rows(ROWS, 1), unit_rows(5, 2), torch.tensor(9.0).double()
    expected = F.cross_entropy(9.0 * images @ classes.T, labels_of((5,)))
    torch.testing.assert_close(ours_for((5,))(images, classes, tau, ALL), expected)
    alone = CrossEntropy(labels_of((5,)), torch.arange(5))
    assert float(alone(images, classes, tau, ALL)) == 0.0


def test_classes_of_other_tasks_get_no_gradient() -> None:
    labels, tasks = torch.zeros(ROWS, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    classes = unit_rows(4, 2)
    _, _, by_classes, _ = value_and_gradients(
        lambda u, v, t: CrossEntropy(labels, tasks)(u, v, t, ALL),
        unit_rows(ROWS, 1), classes, torch.tensor(3.0).double(),
    )  # fmt: skip
    assert torch.equal(by_classes[2:], torch.zeros(2, WIDTH, dtype=DOUBLE))
    assert (by_classes[:2].abs().sum(1) > 0).all()


@pytest.mark.parametrize("temperature", [1.0, 14.3, 100.0])
def test_clip_loss_equals_the_oracles(temperature: float) -> None:
    given = (unit_rows(ROWS, 3), unit_rows(ROWS, 4), torch.tensor(temperature).double())
    ours = value_and_gradients(lambda u, v, t: DownstreamClipLoss()(u, v, t, ALL), *given)
    assert_all_close(ours, value_and_gradients(clip_loss, *given), 1e-10)


@pytest.mark.parametrize("partition", PARTITIONS, ids=len)
@pytest.mark.parametrize("which", ["one_task", "three_tasks", "clip"])
def test_parts_of_a_partition_add_up(which: str, partition: list[slice]) -> None:
    counts = {"one_task": (5,), "three_tasks": (1, 4, 2)}.get(which)
    loss = ours_for(counts) if counts else DownstreamClipLoss()
    texts = unit_rows(sum(counts) if counts else ROWS, 6)
    given = (unit_rows(ROWS, 5), texts, torch.tensor(7.0).double())

    def in_parts(*features: Tensor) -> Tensor:
        return torch.stack([loss(*features, rows) for rows in partition]).sum()

    whole = value_and_gradients(lambda u, v, t: loss(u, v, t, ALL), *given)
    assert_all_close(value_and_gradients(in_parts, *given), whole, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", ["cross_entropy", "clip"])
def test_sixteen_bits_and_autocast_do_not_round_the_loss(which: str, dtype: torch.dtype) -> None:
    loss = DownstreamClipLoss() if which == "clip" else ours_for((5, 3))
    images, texts = unit_rows(ROWS, 7).to(dtype), unit_rows(ROWS, 8).to(dtype)
    scale = torch.tensor(100.0)
    expected = loss(images.float(), texts.float(), scale, ALL)
    with torch.autocast("cpu", dtype):
        actual = loss(images, texts, scale, ALL)
        same = loss(images.float(), texts.float(), scale, ALL)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    assert torch.equal(same, expected)


def test_initial_temperature_equals_the_papers() -> None:
    assert pytest.approx(2.65926, abs=5e-6) == INITIAL_LOG_TEMPERATURE
    assert math.exp(-INITIAL_LOG_TEMPERATURE) == pytest.approx(0.07)
