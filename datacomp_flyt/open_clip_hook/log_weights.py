"""Log weights of a batch: by uid from a table, or by a scoring model that looks at the batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.parquet import open_file_or_folder
from datacomp_flyt.pool.pool import union_of_uids
from datacomp_flyt.pool.score_table import ScoreTable
from datacomp_flyt.pool.score_values import to_float32
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import decode_uids, format_uid
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers


class LogWeights:
    """log w of examples, up to a constant: the loss divides by the sum over its batch.

    This one weighs all alike.
    """

    def load(self, device: str, tokenize: Any, transform: Any) -> None:
        """Make ready, in the process that trains on `device`.

        Args:
            tokenize, transform: what makes the texts and images of the training.
        """

    def check(self, uids: Sequence[str], shard: str) -> None:
        """Raise InputError where a shard's examples have no weight."""

    def __call__(self, uids: NDArray[np.void], images: Tensor, texts: Tensor) -> Tensor:
        """log w [b], float32, -inf for weight 0, of uids [b], images [b, 3, H, W], texts [b, L]."""
        return torch.zeros(len(uids))


class TableWeights(LogWeights):
    """Weights, or scores whose softmax over the batch they are, by uid."""

    def __init__(
        self,
        high: NDArray[np.uint64],
        low: NDArray[np.uint64],
        log_weights: NDArray[np.float32],
        missing: float | None,
        name: str,
    ) -> None:
        """
        Args:
            high, low: halves of the uids [M], sorted.
            log_weights: of these [M].
            missing: log weight of all others; None to refuse them.
            name: flag and path, for messages.
        """
        self._high, self._low, self._log_weights = high, low, log_weights
        self._missing, self._name = missing, name

    def check(self, uids: Sequence[str], shard: str) -> None:
        self._look_up(decode_uids(pa.array(uids, pa.string())), f"the first {len(uids):,}", shard)

    def __call__(self, uids: NDArray[np.void], images: Tensor, texts: Tensor) -> Tensor:
        return torch.from_numpy(self._look_up(uids, f"the {len(uids):,}", "a batch"))

    def _look_up(self, uids: NDArray[np.void], number: str, where: str) -> NDArray[np.float32]:
        rows = find_uids(self._high, self._low, uids)
        log_weights = self._log_weights[rows]
        unknown_uids = np.flatnonzero(rows < 0)
        if len(unknown_uids):
            if self._missing is None:
                raise InputError(
                    f"{self._name} lacks {len(unknown_uids):,} of {number} examples of {where} "
                    f"({len(unknown_uids) / len(uids):.1%}; the first is "
                    f"{format_uid(uids[unknown_uids[0]])}): weigh them too, or say what they count "
                    "with --missing_value"
                )
            log_weights[unknown_uids] = self._missing
        return log_weights


class ScoringModelWeights(LogWeights):
    """Softmax over the batch of the scores that E-FLYT gives to its images and texts."""

    def __init__(self, scoring_model: str, model: str, checkpoint: str | None) -> None:
        """
        Args:
            scoring_model, model, checkpoint: see `EFlytImages`, whose InputErrors are raised.
        """
        from datacomp_flyt.scorers.e_flyt.images import EFlytImages

        self._scorer = EFlytImages(scoring_model, model, checkpoint)
        self._name = f"--scoring_model {scoring_model}"

    def load(self, device: str, tokenize: Any, transform: Any) -> None:
        self._scorer.load(device)
        self._device = device
        texts = ["a photo of a cat", "two words, and 3 signs!"]
        ours, theirs = self._scorer.tokenize(texts), tokenize(texts)
        if ours.shape != theirs.shape or not torch.equal(ours, theirs):
            raise InputError(
                f"{self._name} reads texts by another tokenizer, or of another length, than the "
                "trained model: name an extractor that takes what the trained model takes"
            )
        wanted, given = normalization(self._scorer.transform), normalization(transform)
        if wanted != given:
            raise InputError(
                f"{self._name} takes images normalised by mean and std {wanted} and this training "
                f"makes {given}: name an extractor that takes what the trained model takes"
            )

    def __call__(self, uids: NDArray[np.void], images: Tensor, texts: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        if size != self._scorer.image_size:
            raise InputError(
                f"{self._name} takes images of {self._scorer.image_size} and this training makes "
                f"{size}: name an extractor that takes what the trained model takes"
            )
        with torch.no_grad():
            images = images.to(self._device, torch.float32)
            scores = self._scorer.score_batch(images, texts.to(self._device))
        return scores[:, 0]


def normalization(transform: Any) -> tuple[tuple[float, ...], ...] | None:
    """Mean and std by which a composed transform normalises images, None where it does not say."""
    for part in reversed(getattr(transform, "transforms", [])):
        if hasattr(part, "mean") and hasattr(part, "std"):
            return tuple(tuple(float(x) for x in values) for values in (part.mean, part.std))
    return None


def read_weights(path: str | Path, column: str | None, missing: float | None) -> TableWeights:
    """Weights of a table: parquet of `uid` and one number of at least 0 each.

    Raises:
        InputError: no such table or column, a uid twice, a weight that is negative or not finite.
    """
    name = f"--weights {path}"
    if missing is not None and not 0 <= missing < np.inf:
        raise InputError(f"--missing_value is {missing}, wanted a weight: at least 0")
    high, low, weights = _read(str(path), "--weights", column)
    if (weights < 0).any():
        wrong = np.flatnonzero(weights < 0)
        raise InputError(
            f"{name} has {len(wrong):,} weights below 0 (the first is of uid "
            f"{high[wrong[0]]:016x}{low[wrong[0]]:016x}): for scores, whose softmax over the batch "
            "is the weight, there is --scores"
        )
    if not weights.any():
        raise InputError(f"{name} is 0 for every example: there would be nothing to train on")
    with np.errstate(divide="ignore"):  # weight 0
        logs = np.log(weights, out=weights).astype(np.float32, copy=False)
        other = None if missing is None else float(np.log(missing))
    return TableWeights(high, low, logs, other, name)


def read_scores(path: str | Path, column: str | None, missing: float | None) -> TableWeights:
    """Scores of a table, whose softmax over a batch are the weights there (FLYT, section 3.1).

    Raises:
        InputError: no such table or column, a uid twice, a score that is not finite.
    """
    if missing is not None and not np.isfinite(missing):
        raise InputError(f"--missing_value is {missing}, wanted a score: a finite number")
    high, low, scores = _read(str(path), "--scores", column)
    name = f"--scores {path}"
    return TableWeights(high, low, to_float32(scores, name), missing, name)


def _read(
    path: str, flag: str, column: str | None
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.floating]]:
    """uids, sorted, and their numbers [M]."""
    shards = open_file_or_folder(path, flag, default_num_workers())
    table = ScoreTable(shards, f"{flag} {path}")
    column = _column(table, column)
    if os.environ.get("RANK", "0") == "0":
        say(table.describe(column, column))
    shards = [shard for shard in shards if column in shard.types]
    pool = union_of_uids(shards, f"{flag} {path}", default_num_workers())
    (values,) = table.read(
        [column], pool, default_num_workers(), drop_nonfinite=True, progress=False
    )
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InputError(
            f"{flag} {path} has {len(wrong):,} values of {column!r} that are NaN, infinite or "
            f"missing (the first is of uid {format_uid(pool.uids_of(wrong[:1])[0])}): mend them, "
            "or leave those rows out and say what they count with --missing_value"
        )
    return pool.high, pool.low, values


def _column(table: ScoreTable, column: str | None) -> str:
    """The name of the requested column, or of the only numeric one."""
    if column is None and len(table.columns) == 1:
        return table.columns[0]
    if column is None or column not in table:
        asked = "several columns" if column is None else f"no column {column!r}"
        raise InputError(
            f"{table.name} has {asked if table.columns else 'no column of numbers'} (it has "
            f"{', '.join(table.columns) or 'none'}): name one with --column"
        )
    return column
