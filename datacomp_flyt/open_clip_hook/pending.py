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
        self._used = self._counted = False
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

    def take(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Log weights [rows], float32, and keys of the examples [rows], int64.

        Raises:
            InputError: not so many were announced.
        """
        announced = sum(len(part) for part in self._log_weights)
        if announced != rows:
            raise InputError(
                f"the loss got features of {rows} examples after the loader had given "
                f"{announced}: this trainer makes its steps in a way that the hook does not know"
            )
        self._used = True
        self._log_weights = [torch.cat([part.to(device) for part in self._log_weights])]
        self._keys = [torch.cat([part.to(device) for part in self._keys])]
        return self._log_weights[0], self._keys[0]

    def count_masked(self, number: Tensor) -> None:
        """Note, once a step, how many repeats the loss gave weight 0."""
        if not self._counted:
            self._num_masked = self._num_masked + number
            self._counted = True

    @property
    def num_masked(self) -> int:
        """Repeats over all ranks that got weight 0 since the epoch began."""
        return int(self._num_masked)

    def _forget(self) -> None:
        self._log_weights, self._keys, self._used, self._counted = [], [], False, False
