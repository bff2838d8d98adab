"""What the data loader knows of the batch under way and the loss needs: weights and uids."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datacomp_flyt.errors import InputError


class PendingBatch:
    """The side channel from the loader to the loss, whose arguments are features alone.

    With `--accum-freq k` the trainer takes k batches and then calls the loss k times on all of
    their rows; otherwise once on one.
    """

    def __init__(self) -> None:
        self._log_weights: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._used = False
        self._num_masked: Tensor | int = 0

    def start_epoch(self) -> None:
        """Forget what is left: an epoch may end with batches too few for a step."""
        self._forget()
        self._num_masked = 0

    def push(self, log_weights: Tensor, uids: NDArray[np.void]) -> None:
        """Announce a batch: log weights [b], uids [b]."""
        if self._used:
            self._forget()
        self._log_weights.append(log_weights)
        # uids are hashes, so 64 bits tell a batch's examples apart
        self._keys.append(torch.from_numpy((uids["f0"] ^ uids["f1"]).view(np.int64)))

    def take(self, rows: int) -> tuple[Tensor, Tensor, bool]:
        """Log weights [rows], float32, keys of the examples [rows], int64, and whether for the
        first time.

        Raises:
            InputError: not so many were announced.
        """
        announced = sum(len(part) for part in self._log_weights)
        if announced != rows:
            raise InputError(
                f"the loss got features of {rows} examples after the loader had given "
                f"{announced}: this trainer makes its steps in a way that the hook does not know"
            )
        first, self._used = not self._used, True
        return torch.cat(self._log_weights), torch.cat(self._keys), first

    def count_masked(self, number: Tensor) -> None:
        """Note how many repeats of a step the loss gave weight 0."""
        self._num_masked = self._num_masked + number

    @property
    def num_masked(self) -> int:
        """Repeats over all ranks that got weight 0 since the epoch began."""
        return int(self._num_masked)

    def _forget(self) -> None:
        self._log_weights, self._keys, self._used = [], [], False
