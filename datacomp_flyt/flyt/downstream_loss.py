"""The losses of the downstream batch (FLYT, C.8), each as the part that some rows have in it.

Legend: B' downstream batch, b rows of it, K classes of all tasks together, D embedding, τ_DS the
downstream temperature: a parameter of its own, or 1.

The paper writes sums over the batch; these are means, as in its public code.
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
"""log τ_DS at the start (C.7), where it is learned."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy over class prompts: one prompt per class, a random template of it.

    With several tasks an example is told apart from the classes of its own task alone; the mean
    goes over all examples, so the batch's mixture of tasks is the loss's.

    Attributes:
        labels: class of each example [B'], among all K.
        class_tasks: task of each class [K]; None for one task.
    """

    labels: Tensor
    class_tasks: Tensor | None = None

    def __call__(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, rows: slice
    ) -> Tensor:
        """The rows' part of the loss [] from [B', D], [K, D], τ_DS []."""
        labels = self.labels[rows]
        with torch.autocast(image_features.device.type, enabled=False):
            images, texts = full_precision(image_features), full_precision(text_features)
            logits = logit_scale * images[rows] @ texts.T
            if self.class_tasks is not None:
                foreign = self.class_tasks != self.class_tasks[labels][:, None]
                logits = logits.masked_fill(foreign, -torch.inf)
            return F.cross_entropy(logits, labels, reduction="sum") / len(self.labels)


@dataclass(frozen=True)
class DownstreamClipLoss:
    """CLIP loss between images and their captions, which are prompts of their classes."""

    def __call__(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, rows: slice
    ) -> Tensor:
        """The rows' part of the loss [] from [B', D], [B', D], τ_DS []."""
        number = len(image_features)
        log_weights = full_precision(image_features).new_full((number,), -math.log(number))
        return weighted_clip_loss_of_rows(
            image_features, text_features, logit_scale, log_weights, rows
        )
