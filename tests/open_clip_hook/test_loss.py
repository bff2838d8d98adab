"""The weighted loss compared with Eq. 3 and with the stock loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")
from open_clip import ClipLoss
from torch import Tensor

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt import weighted_clip_loss
from datacomp_flyt.open_clip_hook.batch_weights import BatchWeights
from datacomp_flyt.open_clip_hook.loss import LoggedLosses, WeightedClipLoss
from tests.open_clip_hook.made import uids_of

Features = tuple[Tensor, Tensor, Tensor]


def features_of(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Features:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, rows, 8, generator=generator).to(dtype)
    parts = (
        torch.nn.functional.normalize(images, dim=1),
        torch.nn.functional.normalize(texts, dim=1),
        torch.tensor(14.0, dtype=dtype),
    )
    images, texts, scale = (part.requires_grad_() for part in parts)
    return images, texts, scale


def hooked(
    log_weights: Tensor, features: Features, numbers: list[int] | None = None
) -> LoggedLosses:
    batch_weights = BatchWeights()
    batch_weights.push(log_weights, uids_of(numbers or list(range(len(log_weights)))))
    loss = WeightedClipLoss(ClipLoss(), batch_weights, distinct_in_batch=numbers is not None)
    losses = loss(*features, output_dict=True)
    assert isinstance(losses, LoggedLosses)
    return losses


def gradients(loss: Tensor, features: Features) -> list[Tensor]:
    return list(torch.autograd.grad(loss, features))


@pytest.mark.parametrize("constant", [0.0, 3.7, -90.0])
def test_equal_weights_are_the_stock_loss_to_the_bit(constant: float) -> None:
    features = features_of(33)
    ours = hooked(torch.full((33,), constant), features)["contrastive_loss"]
    theirs = ClipLoss()(*features)
    assert torch.equal(ours, theirs)
    for actual, expected in zip(
        gradients(ours, features), gradients(theirs, features), strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("spread", [0.5, 5.0, 60.0])
def test_equation_3(spread: float) -> None:
    features = features_of(24, seed=1, dtype=torch.float64)
    log_weights = spread * torch.randn(24, generator=torch.Generator().manual_seed(2))
    logs = torch.log_softmax(log_weights.double(), 0)
    ours = hooked(log_weights, features)["contrastive_loss"]
    theirs = weighted_clip_loss(*features, logs)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)
    for actual, expected in zip(
        gradients(ours, features), gradients(theirs, features), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_weight_0_removes_an_example() -> None:
    features = features_of(12, dtype=torch.float64)
    log_weights = torch.zeros(12)
    log_weights[::3] = -torch.inf
    kept = torch.isfinite(log_weights)
    ours = hooked(log_weights, features)["contrastive_loss"]
    images, texts, scale = features
    theirs = ClipLoss()(images[kept], texts[kept], scale)
    torch.testing.assert_close(ours, theirs)
    for actual, expected in zip(
        gradients(ours, features), gradients(theirs, features), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    assert torch.equal(
        gradients(hooked(log_weights, features)["contrastive_loss"], features)[0][::3],
        torch.zeros(4, 8, dtype=torch.float64),
    )


def test_a_batch_of_zero_weights_has_loss_0_and_no_gradient() -> None:
    features = features_of(5)
    losses = hooked(torch.full((5,), -torch.inf), features)
    assert losses["contrastive_loss"].item() == 0
    assert losses["effective_examples"].item() == 0
    for gradient in gradients(losses["contrastive_loss"], features):
        assert not gradient.any()


def test_distinct_keeps_only_the_first_copy() -> None:
    features = features_of(6, dtype=torch.float64)
    losses = hooked(torch.zeros(6), features, numbers=[1, 2, 1, 3, 2, 1])
    kept = torch.tensor([0, 1, 3])
    images, texts, scale = features
    expected = ClipLoss()(images[kept], texts[kept], scale)
    torch.testing.assert_close(losses["contrastive_loss"], expected)
    assert losses["effective_examples"].item() == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features(dtype: torch.dtype) -> None:
    try:
        torch.ones(1, 1, dtype=dtype) @ torch.ones(1, 1, dtype=dtype)
    except RuntimeError:
        pytest.skip(f"this PyTorch multiplies no {dtype} on a CPU")
    images, texts, scale = features_of(32, dtype=torch.float64)
    log_weights = torch.randn(32, generator=torch.Generator().manual_seed(3))
    ours = hooked(log_weights, (images.to(dtype), texts.to(dtype), scale.to(dtype)))
    exact = hooked(log_weights, (images, texts, scale))
    assert ours["contrastive_loss"].dtype == torch.float32
    assert ours["contrastive_loss"].item() == pytest.approx(
        exact["contrastive_loss"].item(), rel=0.03
    )


def test_the_effective_number_of_examples() -> None:
    losses = hooked(torch.tensor([1.0, 2.0, 3.0]).log(), features_of(3))
    assert losses["effective_examples"].item() == pytest.approx(36 / 14)


def test_the_trainer_sums_the_losses_and_logs_all_items() -> None:
    losses = hooked(torch.zeros(4), features_of(4))
    total = sum(losses.values())
    assert torch.equal(total, losses["contrastive_loss"])
    losses["loss"] = total
    assert list(dict(losses.items())) == ["contrastive_loss", "effective_examples", "loss"]


def test_accumulated_batches_are_used_by_each_call() -> None:
    batch_weights = BatchWeights()
    loss = WeightedClipLoss(ClipLoss(), batch_weights, distinct_in_batch=True)
    features = features_of(8)
    for step in range(2):
        logs = torch.randn(8, generator=torch.Generator().manual_seed(step))
        batch_weights.push(logs[:4], uids_of([0, 1, 2, 3]))
        batch_weights.push(logs[4:], uids_of([0, 5, 6, 7]))
        values = {loss(*features).item() for _ in range(2)}
        assert values == {
            hooked(logs, features, [0, 1, 2, 3, 0, 5, 6, 7])["contrastive_loss"].item()
        }
    assert batch_weights.num_masked == 2


def test_leftover_batches_of_an_epoch_are_discarded() -> None:
    batch_weights = BatchWeights()
    batch_weights.push(torch.zeros(4), uids_of(range(4)))
    batch_weights.start_epoch()
    batch_weights.push(torch.zeros(3), uids_of(range(3)))
    assert len(batch_weights.take(3)[0]) == 3


@pytest.mark.parametrize("num_pushed", [0, 3, 8])
def test_a_wrong_number_of_rows_is_refused(num_pushed: int) -> None:
    batch_weights = BatchWeights()
    if num_pushed:
        batch_weights.push(torch.zeros(num_pushed), uids_of(range(num_pushed)))
    loss = WeightedClipLoss(ClipLoss(), batch_weights, distinct_in_batch=False)
    with pytest.raises(InputError, match=f"features of 4 examples after .* given {num_pushed}:"):
        loss(*features_of(4))


def test_keys_of_distinct_uids_differ() -> None:
    batch_weights = BatchWeights()
    batch_weights.push(torch.zeros(2000), uids_of(range(2000)))
    _, keys, _ = batch_weights.take(2000)
    assert len(np.unique(keys.numpy())) == 2000
