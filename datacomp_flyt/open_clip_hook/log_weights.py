"""Computes the log weights of a batch: from a table by uid, or with a scoring model."""

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
    """Computes log w of the examples of a batch; this base class gives equal weights.

    A constant in log w does not matter, since the loss normalises the weights.
    """

    def load(self, device: str, tokenize: Any, transform: Any) -> None:
        """Prepare for calls. It is called once in the training process, before the first batch.

        Args:
            device: the device of the training.
            tokenize: the tokenizer of the trained model.
            transform: the image transform of the training.

        Raises:
            InputError: the weights cannot be computed from this training's texts or images.
        """

    def check(self, uids: Sequence[str], shard: str) -> None:
        """Check the first examples of a shard: raise InputError if some have no weight."""

    def __call__(self, uids: NDArray[np.void], images: Tensor, texts: Tensor) -> Tensor:
        """Return log w [b], float32, -inf for weight 0.

        Args:
            uids: `u8,u8` array [b].
            images: [b, 3, H, W].
            texts: tokens [b, L].
        """
        return torch.zeros(len(uids))


class TableWeights(LogWeights):
    """Looks up by uid a weight, or a score.

    Of scores, the weights are the softmax over the batch.
    """

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
            high, low: the halves of the uids [M], sorted.
            log_weights: the log weights of these uids [M].
            missing: the log weight of all other uids; None to refuse them.
            name: the flag and the path, for messages.
        """
        self._high, self._low, self._log_weights = high, low, log_weights
        self._missing, self._name = missing, name

    def check(self, uids: Sequence[str], shard: str) -> None:
        uid_array = decode_uids(pa.array(uids, pa.string()))
        self._look_up(uid_array, f"the first {len(uids):,} examples of {shard}")

    def __call__(self, uids: NDArray[np.void], images: Tensor, texts: Tensor) -> Tensor:
        return torch.from_numpy(self._look_up(uids, f"the {len(uids):,} examples of a batch"))

    def _look_up(self, uids: NDArray[np.void], examples: str) -> NDArray[np.float32]:
        rows = find_uids(self._high, self._low, uids)
        log_weights = self._log_weights[rows]
        unknown_uids = np.flatnonzero(rows < 0)
        if len(unknown_uids):
            if self._missing is None:
                raise InputError(
                    f"{self._name} lacks {len(unknown_uids):,} of {examples} "
                    f"({len(unknown_uids) / len(uids):.1%}; the first is "
                    f"{format_uid(uids[unknown_uids[0]])}): add them to the table, or give their "
                    "value with --missing_value"
                )
            log_weights[unknown_uids] = self._missing
        return log_weights


class ScoringModelWeights(LogWeights):
    """Scores the batch with E-FLYT; the softmax of the scores gives the weights."""

    def __init__(self, scoring_model: str, model: str, checkpoint: str | None) -> None:
        """
        Args:
            scoring_model, model, checkpoint: as for `EFlytImages`, whose InputErrors are raised.
        """
        from datacomp_flyt.scorers.e_flyt.images import EFlytImages

        self._scorer = EFlytImages(scoring_model, model=model, checkpoint=checkpoint)
        self._name = f"--scoring_model {scoring_model}"

    def load(self, device: str, tokenize: Any, transform: Any) -> None:
        self._scorer.load(device)
        self._device = device
        texts = ["a photo of a cat", "two words, and 3 signs!"]
        expected, given = self._scorer.tokenize(texts), tokenize(texts)
        if expected.shape != given.shape or not torch.equal(expected, given):
            raise InputError(
                f"{self._name} uses another tokenizer or another context length than the trained "
                "model: choose an extractor whose tokenizer is that of the trained model"
            )
        scorer_stats = normalisation(self._scorer.transform)
        trainer_stats = normalisation(transform)
        if scorer_stats != trainer_stats:
            raise InputError(
                f"{self._name} takes images normalised by mean and std {scorer_stats} and this "
                f"training makes {trainer_stats}: choose an extractor whose normalisation is that "
                "of the trained model"
            )

    def __call__(self, uids: NDArray[np.void], images: Tensor, texts: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        if size != self._scorer.image_size:
            raise InputError(
                f"{self._name} takes images of {self._scorer.image_size} and this training makes "
                f"{size}: choose an extractor whose image size is that of the trained model"
            )
        with torch.no_grad():
            images = images.to(self._device, torch.float32)
            scores = self._scorer.score_batch(images, texts.to(self._device))
        return scores[:, 0]


def normalisation(transform: Any) -> tuple[tuple[float, ...], ...] | None:
    """Return mean and std of the normalisation in a composed transform, None if it has none."""
    for part in reversed(getattr(transform, "transforms", [])):
        if hasattr(part, "mean") and hasattr(part, "std"):
            return tuple(tuple(float(x) for x in values) for values in (part.mean, part.std))
    return None


def read_weights(path: str | Path, column: str | None, missing: float | None) -> TableWeights:
    """Read a table of weights: parquet of `uid` and a number of at least 0.

    Args:
        path: a file or a folder.
        column: the column of the weights; None for the only numeric one.
        missing: the weight of all other examples; None to refuse them.

    Raises:
        InputError: no such table or column, a uid twice, a weight that is negative or not finite.
    """
    name = f"--weights {path}"
    if missing is not None and not 0 <= missing < np.inf:
        raise InputError(f"--missing_value is {missing}, wanted a finite number, 0 or more")
    high, low, weights = _read(str(path), "--weights", column)
    if (weights < 0).any():
        negative = np.flatnonzero(weights < 0)
        raise InputError(
            f"{name} has {len(negative):,} weights below 0 (the first is of uid "
            f"{high[negative[0]]:016x}{low[negative[0]]:016x}): if these are scores, give "
            "them with --scores"
        )
    if not weights.any():
        raise InputError(f"{name} is 0 for every example: give some of them a weight above 0")
    with np.errstate(divide="ignore"):  # weight 0
        logs = np.log(weights, out=weights).astype(np.float32, copy=False)
        missing_log = None if missing is None else float(np.log(missing))
    return TableWeights(high, low, logs, missing_log, name)


def read_scores(path: str | Path, column: str | None, missing: float | None) -> TableWeights:
    """Read a table of scores, whose softmax over a batch gives its weights (FLYT, section 3.2).

    Args:
        path: a file or a folder.
        column: the column of the scores; None for the only numeric one.
        missing: the score of all other examples; None to refuse them.

    Raises:
        InputError: no such table or column, a uid twice, a score that is not finite.
    """
    if missing is not None and not np.isfinite(missing):
        raise InputError(f"--missing_value is {missing}, wanted a finite number")
    high, low, scores = _read(str(path), "--scores", column)
    name = f"--scores {path}"
    return TableWeights(high, low, to_float32(scores, name), missing, name)


def _read(
    path: str, flag: str, column: str | None
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.floating]]:
    """Return the halves of the sorted uids [M], and their values [M]."""
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
    nonfinite = np.flatnonzero(~np.isfinite(values))
    if len(nonfinite):
        raise InputError(
            f"{flag} {path} has {len(nonfinite):,} values of {column!r} that are NaN, infinite or "
            f"missing (the first is of uid {format_uid(pool.uids_of(nonfinite[:1])[0])}): repair "
            "them, or leave out those rows and give their value with --missing_value"
        )
    return pool.high, pool.low, values


def _column(table: ScoreTable, column: str | None) -> str:
    """Return the name of the requested column, or of the only numeric one."""
    if column is None and len(table.columns) == 1:
        return table.columns[0]
    if column is None or column not in table:
        problem = "several columns" if column is None else f"no column {column!r}"
        raise InputError(
            f"{table.name} has {problem if table.columns else 'no column of numbers'} (it has "
            f"{', '.join(table.columns) or 'none'}): choose one with --column"
        )
    return column
