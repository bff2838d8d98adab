"""The losses of the downstream batch (FLYT, Appendix C.8).

Each loss is a callable that returns the part of the loss that some rows contribute. The paper
writes sums over the batch; these are means, as in its public code.

Legend: B' downstream batch, K classes of all tasks together, D embedding, τ_DS downstream
temperature, which is learned or 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datacomp_flyt.flyt.weighted_loss import full_precision, weighted_clip_loss_of_rows

LOSSES = ("cross_entropy", "cross_entropy_temperature", "clip")
INITIAL_LOG_TEMPERATURE = math.log(1 / 0.07)
"""Initial log τ_DS, if it is learned (Appendix C.7)."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy over class prompts, one prompt with a random template for each class.

    With several tasks, the softmax of an example runs over the classes of its own task. The loss is
    the mean over all examples of the batch, whatever their tasks.

    Attributes:
        labels: class of each example [B'], from 0 to K - 1.
        class_tasks: task of each class [K]; None for a single task.
    """

    labels: Tensor
    class_tasks: Tensor | None = None

    def __call__(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, rows: slice
    ) -> Tensor:
        """Compute the part of some rows [] from [B', D], [K, D], τ_DS []."""
        labels = self.labels[rows]
        with torch.autocast(image_features.device.type, enabled=False):
            images, texts = full_precision(image_features), full_precision(text_features)
            logits = logit_scale * images[rows] @ texts.T
            if self.class_tasks is not None:
                of_other_task = self.class_tasks != self.class_tasks[labels][:, None]
                logits = logits.masked_fill(of_other_task, -torch.inf)
            return F.cross_entropy(logits, labels, reduction="sum") / len(self.labels)


@dataclass(frozen=True)
class DownstreamClipLoss:
    """CLIP loss between images and their captions or class prompts."""

    def __call__(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, rows: slice
    ) -> Tensor:
        """Compute the part of some rows [] from [B', D], [B', D], τ_DS []."""
        batch_size = len(image_features)
        log_weights = full_precision(image_features).new_full((batch_size,), -math.log(batch_size))
        return weighted_clip_loss_of_rows(
            image_features, text_features, logit_scale, log_weights, rows
        )
