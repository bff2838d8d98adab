"""FLYT's weighted CLIP loss (Eq. 3), computed with the parts of open_clip's own ClipLoss.

Let a_ij be the logits and w weights of sum 1. The loss is the mean over images and texts of
-sum_i w_i log(w_i e^a_ii / sum_j w_j e^a_ij), which is the cross entropy of the logits
a_ij + log w_j with class weights w_i, where the label of row i is i. It differs from
`ClipLoss.forward` in one sum and one argument; with equal weights it is bit-identical.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datacomp_flyt.open_clip_hook.batch_weights import BatchWeights

_LOG_ZERO = -1e30  # log of weight 0; finite, so that a batch of zero weights gives no NaN
_IGNORED = -100  # label of rows with weight 0; PyTorch's default for ignore_index


class LoggedLosses(dict[str, Tensor]):
    """The loss, and a number for the trainer to log.

    The trainer adds up the `values()` and then logs all `items()`.
    """

    def values(self) -> list[Tensor]:  # type: ignore[override]
        """Return the losses without the number that is only logged."""
        return [value for name, value in self.items() if name.endswith("loss")]


class WeightedClipLoss(nn.Module):
    """Replaces a ClipLoss, with weights from the loader."""

    _shared: Tensor  # log weights [B] of the current step

    def __init__(self, stock: Any, batch_weights: BatchWeights, distinct_in_batch: bool) -> None:
        """
        Args:
            stock: open_clip's ClipLoss.
            batch_weights: receives the weights of a batch from the loader.
            distinct_in_batch: give weight 0 to all but the first of a pair's copies in a batch.
        """
        super().__init__()
        self.stock: Any = stock
        self._batch_weights, self._distinct_in_batch = batch_weights, distinct_in_batch
        self._world_size: int = stock.world_size
        # the number of ranks whose losses are averaged
        self._shares = stock.world_size if stock.local_loss else 1

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> dict[str, Tensor] | Tensor:
        """Return the loss [] of features [b, D] and a logit scale [], as `ClipLoss` does.

        Its gradient is this rank's share, as in the stock loss; its value is the loss over all
        ranks. `effective_examples` is (sum w)^2 / sum w^2 over the batch.
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
        """Return log w [B] of the batch over all ranks, shifted so that the largest is 0."""
        local, keys, first = self._batch_weights.take(rows)
        if not first:  # the same step again, with --accum-freq
            return self._shared
        log_weights = self._gather(local.to(device, non_blocking=True)).clamp_min(_LOG_ZERO)
        if self._distinct_in_batch:
            repeated = _repeats(self._gather(keys.to(device, non_blocking=True)))
            self._batch_weights.count_masked(repeated.sum())
            log_weights = log_weights.masked_fill(repeated, _LOG_ZERO)
        self._shared = log_weights - log_weights.max().clamp_min(_LOG_ZERO / 2)
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
    """Return a mask [B] of the keys that occur in an earlier row."""
    sorted_keys, order = torch.sort(keys, stable=True)
    repeated = torch.zeros_like(keys, dtype=torch.bool)
    repeated[order[1:]] = sorted_keys[1:] == sorted_keys[:-1]
    return repeated
