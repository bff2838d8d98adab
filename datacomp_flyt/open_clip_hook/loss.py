"""FLYT's weighted CLIP loss (Eq. 3) out of the parts of open_clip's own ClipLoss.

With a_ij the logits, w weights of sum 1, the loss is -sum_i w_i log(w_i e^a_ii / sum_j w_j e^a_ij)
for images and the same for texts, halved. That is the cross entropy of the logits a_ij + log w_j in
which class i, which is the label of row i, weighs w_i. So it differs from `ClipLoss.forward` in one
sum and one argument, and with equal weights not in a single bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datacomp_flyt.open_clip_hook.batch_weights import BatchWeights

_NOTHING = -1e30  # log of weight 0: finite, so that a batch of nothing else is no NaN
_IGNORED = -100  # label of rows that do not count: PyTorch's own


class LoggedLosses(dict[str, Tensor]):
    """A loss, and a number that the trainer shall log beside it.

    The trainer adds up the `values()` and then logs all `items()`.
    """

    def values(self) -> list[Tensor]:  # type: ignore[override]
        """The losses alone."""
        return [value for name, value in self.items() if name.endswith("loss")]


class WeightedClipLoss(nn.Module):
    """Takes the place of a ClipLoss, with the weights that the loader announced."""

    _shared: Tensor  # log weights [B] of the step under way

    def __init__(self, stock: Any, batch_weights: BatchWeights, distinct_in_batch: bool) -> None:
        """
        Args:
            stock: open_clip's ClipLoss.
            batch_weights: what the loader said of the batch.
            distinct_in_batch: give weight 0 to all but the first of a pair's copies in a batch.
        """
        super().__init__()
        self.stock: Any = stock
        self._batch_weights, self._distinct_in_batch = batch_weights, distinct_in_batch
        self._world_size: int = stock.world_size
        self._shares = (
            stock.world_size if stock.local_loss else 1
        )  # parts that the loss is a mean of

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> dict[str, Tensor] | Tensor:
        """The loss [] of features [b, D] and a logit scale [], as `ClipLoss` returns it.

        Its gradient is this rank's share as in the stock loss; its value is that of all ranks.
        `effective_examples` is (sum w)^2 / sum w^2 over the batch.
        """
        rows = len(image_features)
        log_weights = self._log_weights(rows, image_features.device)
        weights = log_weights.exp()
        total = weights.sum()
        bias = {} if logit_bias is None else {"logit_bias": logit_bias}
        logits = self.stock.get_logits(image_features, text_features, logit_scale, **bias)
        labels = self.stock.get_ground_truth(image_features.device, len(logits[0]))
        labels = labels.masked_fill(weights[labels] == 0, _IGNORED)
        loss = (
            _cross_entropy(logits[0], labels, log_weights, weights, total / self._shares)
            + _cross_entropy(logits[1], labels, log_weights, weights, total / self._shares)
        ) / 2
        if self._shares > 1:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            loss = loss + (mean / self._world_size - loss.detach())
        if not output_dict:
            return loss
        effective = total.square() / weights.square().sum().clamp_min(torch.finfo().tiny)
        return LoggedLosses(contrastive_loss=loss, effective_examples=effective)

    def _log_weights(self, rows: int, device: torch.device) -> Tensor:
        """log w [B] of the batch over all ranks, of which the largest is 0."""
        local, keys, first = self._batch_weights.take(rows)
        if not first:  # the same step again, with --accum-freq
            return self._shared
        log_weights = self._gather(local.to(device, non_blocking=True)).clamp_min(_NOTHING)
        if self._distinct_in_batch:
            repeated = _repeats(self._gather(keys.to(device, non_blocking=True)))
            self._batch_weights.count_masked(repeated.sum())
            log_weights = log_weights.masked_fill(repeated, _NOTHING)
        self._shared = log_weights - log_weights.max().clamp_min(_NOTHING / 2)
        return self._shared

    def _gather(self, values: Tensor) -> Tensor:
        if self._world_size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self._world_size)]
        dist.all_gather(parts, values)
        return torch.cat(parts)


def _cross_entropy(
    logits: Tensor, labels: Tensor, log_weights: Tensor, weights: Tensor, total: Tensor
) -> Tensor:
    weighted = logits + log_weights
    weights = weights.to(weighted.dtype)
    losses = F.cross_entropy(
        weighted, labels, weight=weights, reduction="sum", ignore_index=_IGNORED
    )
    return losses / total.clamp_min(torch.finfo().tiny)


def _repeats(keys: Tensor) -> Tensor:
    """Which of some keys [B] were there before, in the order of rows."""
    in_order, order = torch.sort(keys, stable=True)
    again = torch.zeros_like(keys, dtype=torch.bool)
    again[order[1:]] = in_order[1:] == in_order[:-1]
    return again
