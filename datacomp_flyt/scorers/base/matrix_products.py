"""Matrix products of embeddings on a CPU core or a GPU, a tile at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CPU_TILE = (256, 2048)  # a float32 tile that a core's caches hold beside the factors
_CUDA_TILE = (8192, 32768)


@dataclass(frozen=True)
class Compute:
    """The device and precision of matrix products.

    Attributes:
        device: `cpu`, `cuda:0`.
        precision: `fp32`, or `bf16`: factors and results are bfloat16, sums float32.
    """

    device: str
    precision: str

    @property
    def tile(self) -> tuple[int, int]:
        """The numbers of rows and columns of a product to hold at once."""
        return _CPU_TILE if self.device == "cpu" else _CUDA_TILE

    def put(self, array: NDArray[np.float32]) -> Tensor:
        """Copy an array to the device, as float32."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def factor(self, tensor: Tensor) -> Tensor:
        """Return a tensor as a factor of products: contiguous and in the chosen precision."""
        return tensor.to(torch.bfloat16 if self.precision == "bf16" else torch.float32).contiguous()


def products(rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ columns.T as float32: [n, d], [m, d] -> [n, m]."""
    return (rows @ columns.T).float()
