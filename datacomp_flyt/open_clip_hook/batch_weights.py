"""Hands the batch's weights and uids from the loader to the loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datacomp_flyt.errors import InputError


class BatchWeights:
    """A queue from the loader to the loss, whose own arguments are the features alone.

    With `--accum-freq k` the trainer takes k batches and then calls the loss k times on all of
    their rows; otherwise it calls the loss once per batch.
    """

    def __init__(self) -> None:
        self._log_weights: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._used = False
        self._num_masked: Tensor | int = 0

    def start_epoch(self) -> None:
        """Discard the batches that are left: an epoch may end with too few of them for a step."""
        self._clear()
        self._num_masked = 0

    def push(self, log_weights: Tensor, uids: NDArray[np.void]) -> None:
        """Add a batch.

        Args:
            log_weights: [b].
            uids: `u8,u8` array [b].
        """
        if self._used:
            self._clear()
        self._log_weights.append(log_weights)
        # uids are hashes, so 64 bits tell a batch's examples apart
        self._keys.append(torch.from_numpy((uids["f0"] ^ uids["f1"]).view(np.int64)))

    def take(self, rows: int) -> tuple[Tensor, Tensor, bool]:
        """Return the batches of the current step.

        Returns:
            Log weights [rows], float32; keys of the examples [rows], int64; whether this is the
            first call for the step.

        Raises:
            InputError: the loader gave another number of rows.
        """
        num_pushed = sum(len(part) for part in self._log_weights)
        if num_pushed != rows:
            raise InputError(
                f"the loss got features of {rows} examples after the loader had given "
                f"{num_pushed}: the hook does not support the way in which this trainer makes its "
                "steps, so train without it"
            )
        first, self._used = not self._used, True
        return torch.cat(self._log_weights), torch.cat(self._keys), first

    def count_masked(self, num_masked: Tensor) -> None:
        """Add the number of repeats in a step to which the loss gave weight 0."""
        self._num_masked = self._num_masked + num_masked

    @property
    def num_masked(self) -> int:
        """The number of repeats over all ranks that got weight 0 since the epoch began."""
        return int(self._num_masked)

    def _clear(self) -> None:
        self._log_weights, self._keys, self._used = [], [], False
