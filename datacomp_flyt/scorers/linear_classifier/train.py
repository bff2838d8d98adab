"""Train IN1K-Classifier and CC2M-Classifier: a "high quality" dataset against the pool.

FLYT, B.2: one linear layer on CLIP embeddings, 40,000 steps of batch 256, a cosine learning rate
of at most 0.01 after 500 steps of warm-up. The paper does not state the rest; ours:

- loss: binary cross-entropy; each batch is half positives, half negatives.
- optimizer: Adam, without weight decay. Rows have unit norm and are alike, so useful weights are
  long, and plain gradient descent at 0.01 hardly leaves chance in 40,000 steps (on synthetic rows
  of width 512 it ends at a loss of 0.69, Adam at 0.20).
- initial weights: zero. The loss is convex, so they only decide the distance to the optimum.
- examples: drawn from the positives and from the whole pool as in `training_rows`; the pool's own
  good examples stay among the negatives.

Two matrix-vector products a step need neither torch nor a GPU: in float64, on one core, a training
takes seconds to a few minutes, most of it to read the pool. So there are no checkpoints: a killed
training starts again, and ends in the same bytes on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from datacomp_flyt.arguments import check_list
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.progress import Progress
from datacomp_flyt.scorers.linear_classifier.classifier_file import LinearModel, save_classifier
from datacomp_flyt.scorers.linear_classifier.training_rows import (
    EmbeddingFile,
    RandomRows,
    find_embeddings,
)
from datacomp_flyt.streams import say

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_SHOWN_STEPS = 100  # steps of the bar's mean loss
_REPORTED_STEPS = 1000


ARRAYS = ("b32_img",)
BUFFER_ROWS = 1 << 21


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; the defaults are the paper's.

    Attributes:
        steps: the number of updates.
        batch_size: examples in a batch, half of them positives.
        lr: the highest learning rate.
        warmup: steps until the highest learning rate.
    """

    steps: int = 40_000
    batch_size: int = 256
    lr: float = 0.01
    warmup: int = 500

    def check(self) -> None:
        """Raise InputError if a setting is out of range."""
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
        """Return the learning rate of a step, counted from 0: linear up, then a cosine to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr * 0.5 * (1 + float(np.cos(np.pi * share)))


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier and its results on the batches of the last steps.

    Attributes:
        model: the classifier.
        steps: the number of steps that the results are of.
        loss: mean binary cross-entropy in nats; ln 2 = 0.693 is chance.
        accuracy: the share of examples on the right side of a logit of 0.
    """

    model: LinearModel
    steps: int
    loss: float
    accuracy: float


_PAPER = TrainingSettings()


def train_classifier(
    *,
    positives: Sequence[str | Path],
    negatives: Sequence[str | Path],
    out: str | Path,
    positive_uids: str | Path | None = None,
    arrays: Sequence[str] = ARRAYS,
    steps: int = _PAPER.steps,
    batch_size: int = _PAPER.batch_size,
    lr: float = _PAPER.lr,
    warmup: int = _PAPER.warmup,
    seed: int = 0,
    renormalize: bool = False,
    buffer_rows: int = BUFFER_ROWS,
) -> TrainedClassifier:
    """Train a linear classifier of a better dataset against the pool, and write it (FLYT, B.2).

    Args:
        positives: embeddings of the better dataset: folders with .npz files, .npz files, or .npy
            files of one array.
        negatives: embeddings of the pool, likewise.
        out: the .safetensors file to write.
        positive_uids: a subset file; of the positives, only these uids are used.
        arrays: the npz arrays, side by side in this order.
        steps, batch_size, lr, warmup: see `TrainingSettings`.
        seed: the seed of the drawing, 0 or more.
        renormalize: scale embeddings to unit norm; otherwise as stored.
        buffer_rows: examples of each class in memory, of which batches are drawn.

    Returns:
        the classifier, and its loss and accuracy on the last batches.

    Raises:
        InputError: an argument is out of range, or a file is wrong.
    """
    (settings := TrainingSettings(steps, batch_size, lr, warmup)).check()
    _check_arguments(arrays, buffer_rows, batch_size, seed, str(out))
    path = check_save_path(str(out), "--out")
    given = {"positives": positives, "negatives": negatives}
    sources = {name: [*map(str, check_list(paths, f"--{name}"))] for name, paths in given.items()}
    check_outputs([Output("--out", path)], {**sources, "positive_uids": positive_uids})
    subset = read_subset(positive_uids)[0] if positive_uids else None
    files = {name: find_embeddings(paths, arrays, f"--{name}") for name, paths in sources.items()}
    _check_widths(files["positives"][0], files["negatives"][0])
    # one random stream for each class, so that reading one does not change the other
    rows = {}
    for stream, name in enumerate(files):
        rng = np.random.default_rng([seed, stream])
        uids = subset if name == "positives" else None
        rows[name] = RandomRows(files[name], rng, buffer_rows, f"--{name}", renormalize, uids)
    trained = train_linear_classifier(rows["positives"], rows["negatives"], arrays, settings)
    save_classifier(trained.model, path)
    _say(trained, rows, path)
    return trained


def _check_arguments(
    arrays: Sequence[str], buffer_rows: int, batch_size: int, seed: int, out: str
) -> None:
    check_list(arrays, "--arrays")
    if buffer_rows < batch_size:
        raise InputError(
            f"--buffer_rows {buffer_rows} is less than --batch_size {batch_size}: give many times "
            "more"
        )
    if seed < 0:
        raise InputError(f"--seed {seed} is negative: give 0 or more")
    if not out.endswith(".safetensors"):
        raise InputError(f"--out {out} is not a .safetensors file: name one")


def _check_widths(first: EmbeddingFile, second: EmbeddingFile) -> None:
    """Raise InputError unless positives and negatives have embeddings of one width."""
    if first.width != second.width:
        raise InputError(
            f"--positives {first.path} has embeddings of width {first.width} and --negatives "
            f"{second.path} of {second.width}: take those of one model"
        )


def _say(trained: TrainedClassifier, rows: dict[str, RandomRows], path: Path) -> None:
    for name, drawn in rows.items():
        say(f"{name}: {drawn.held:,} examples" + ("" if drawn.whole else " in memory at a time"))
        for reason, count in drawn.counts.items():
            if count:
                say(f"  {count:,} read: {reason}")
    say(
        f"last {trained.steps:,} steps: loss {trained.loss:.4f} (chance 0.6931), accuracy "
        f"{trained.accuracy:.1%}",
        path,
    )


def train_linear_classifier(
    positives: RandomRows,
    negatives: RandomRows,
    arrays: Sequence[str],
    settings: TrainingSettings,
    progress: bool = True,
) -> TrainedClassifier:
    """Train a classifier of rows.

    Args:
        positives, negatives: rows of one width, with buffers of at least half a batch.
        arrays: the names of the npz arrays, for the classifier's file.
        settings: the settings of the training.
        progress: show a progress bar.

    Raises:
        InputError: a setting is out of range, or a file is damaged.
    """
    settings.check()
    width, half = positives.width, settings.batch_size // 2
    batch = np.ones((settings.batch_size, width + 1))  # the last column belongs to the bias
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
    return TrainedClassifier(model, last, float(losses[-last:].mean()), float(right[-last:].mean()))
