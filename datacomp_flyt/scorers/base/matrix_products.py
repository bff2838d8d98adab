"""Matrix products of embeddings on a CPU core or a GPU, a tile at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CPU_TILE = (256, 2048)  # of float32, what a core's caches hold beside the factors
_CUDA_TILE = (8192, 32768)


@dataclass(frozen=True)
class Compute:
    """Where products are computed, and with which factors.

    Attributes:
        device: `cpu`, `cuda:0`.
        precision: `fp32`, or `bf16`: factors rounded to 8 bits, sums and results in float32 on
            the inside and bfloat16 on the way out.
    """

    device: str
    precision: str

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a product to hold at once."""
        return _CPU_TILE if self.device == "cpu" else _CUDA_TILE

    def put(self, array: NDArray[np.float32]) -> Tensor:
        """float32 on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def factor(self, tensor: Tensor) -> Tensor:
        """As products want it: contiguous and in the chosen precision."""
        return tensor.to(torch.bfloat16 if self.precision == "bf16" else torch.float32).contiguous()


def products(rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ columns.T in float32: [n, d], [m, d] -> [n, m]."""
    return (rows @ columns.T).float()
