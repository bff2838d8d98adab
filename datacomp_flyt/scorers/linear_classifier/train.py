"""Train IN1K-Classifier and CC2M-Classifier: a "high quality" dataset against the pool.

FLYT, B.2: one linear layer on CLIP embeddings, 40,000 steps of batch 256, a cosine learning rate
of at most 0.01 after 500 steps of warm-up. The paper does not state the rest; ours:

- loss: binary cross-entropy; each batch is half positives, half negatives.
- optimiser: Adam, without weight decay. Rows have length 1 and much in common, so useful weights
  are long, and plain gradient descent at 0.01 hardly leaves chance in 40,000 steps (on made-up
  rows of width 512 it ends at a loss of 0.69, Adam at 0.20).
- start: all zero. The loss is convex, so the start only decides how far there is to go.
- examples: drawn from the positives and from the whole pool as in `training_rows`; the pool's own
  good examples stay among the negatives.

Two matrix-vector products a step need neither torch nor a GPU: in float64, on one core, a training
takes seconds to a few minutes, most of it to read the pool. So there are no checkpoints: what was
killed is run again, and ends in the same bytes on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from datacomp_flyt.errors import InputError
from datacomp_flyt.progress import Progress
from datacomp_flyt.scorers.linear_classifier.classifier_file import LinearModel
from datacomp_flyt.scorers.linear_classifier.training_rows import RandomRows

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_SHOWN_STEPS = 100  # steps of the bar's mean loss
_REPORTED_STEPS = 1000


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults are the paper's.

    Attributes:
        steps: updates.
        batch_size: examples in each, half of them positives.
        lr: the highest learning rate.
        warmup: steps until then.
    """

    steps: int = 40_000
    batch_size: int = 256
    lr: float = 0.01
    warmup: int = 500

    def check(self) -> None:
        """Raise InputError where a flag makes no sense."""
        if self.steps < 1:
            raise InputError(f"--steps {self.steps} is no training: give 1 or more")
        if self.batch_size < 2 or self.batch_size % 2:
            raise InputError(
                f"--batch_size {self.batch_size} cannot be half positives, half negatives: give an "
                "even number"
            )
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr} is no learning rate: give a positive number")
        if not 0 <= self.warmup < self.steps:
            raise InputError(
                f"--warmup {self.warmup} does not end within --steps {self.steps}: give fewer"
            )

    def learning_rate(self, step: int) -> float:
        """Of a step, of which 0 is the first: linear up, then half a cosine down to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr * 0.5 * (1 + float(np.cos(np.pi * share)))


@dataclass(frozen=True)
class Trained:
    """A classifier, and how it did on the batches of the last `steps` steps.

    Attributes:
        loss: mean binary cross-entropy in nats; ln 2 = 0.693 is chance.
        accuracy: share of examples on the right side of a logit of 0.
    """

    model: LinearModel
    steps: int
    loss: float
    accuracy: float


def train_linear_classifier(
    positives: RandomRows,
    negatives: RandomRows,
    arrays: Sequence[str],
    settings: TrainingSettings,
    progress: bool = True,
) -> Trained:
    """Train a classifier of rows.

    Args:
        positives, negatives: of one width, with buffers of at least half a batch.
        arrays: their names in the npz, for the classifier's file.

    Raises:
        InputError: settings that make no sense; a file that turns out to be damaged.
    """
    settings.check()
    width, half = positives.width, settings.batch_size // 2
    batch = np.ones((settings.batch_size, width + 1))  # the last column is the bias'
    signs = np.repeat([1.0, -1.0], half)
    parameters, mean, square = np.zeros((3, width + 1))
    losses, right = np.zeros((2, settings.steps))
    bar = Progress("training", settings.steps, "step", quiet=not progress)
    # some BLAS round by their number of threads
    with bar, threadpool_limits(1, "blas"):
        for step in range(settings.steps):
            batch[:half, :width] = positives.draw(half)
            batch[half:, :width] = negatives.draw(half)
            margins = signs * (batch @ parameters)
            losses[step] = np.logaddexp(0, -margins).mean()
            right[step] = (margins > 0).mean()
            # d loss / d logit = sigmoid(logit) - label = -sign * sigmoid(-margin)
            slopes = -signs * 0.5 * (1 - np.tanh(margins / 2)) / len(batch)
            gradient = slopes @ batch
            mean += (1 - _BETA_1) * (gradient - mean)
            square += (1 - _BETA_2) * (gradient**2 - square)
            root = np.sqrt(square / (1 - _BETA_2 ** (step + 1)))
            ahead = mean / (1 - _BETA_1 ** (step + 1)) / (root + _EPSILON)
            parameters -= settings.learning_rate(step) * ahead
            if (step + 1) % _SHOWN_STEPS == 0:
                bar.note(f"loss {losses[step + 1 - _SHOWN_STEPS : step + 1].mean():.4f}")
                bar.update(_SHOWN_STEPS)
    last = min(_REPORTED_STEPS, settings.steps)
    weights = parameters.astype(np.float32)
    model = LinearModel(weights[:-1].copy(), weights[-1], tuple(arrays))
    return Trained(model, last, float(losses[-last:].mean()), float(right[-last:].mean()))
