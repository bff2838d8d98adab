"""Orders of a pool's examples: that of the pool, and those of the files with their scores.

Moving values to another order accesses memory at random, which costs more than arithmetic on them,
so columns stay in the order of their files as long as possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.uid_search import Positions
from datacomp_flyt.threads import blocks, map_threads

_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class RowOrder:
    """An order of all or some examples of a pool.

    Attributes:
        pool_size: the number of examples in the pool, M.
        positions: the index in the pool of each row [n], none twice; None for the pool's order.
    """

    pool_size: int
    positions: Positions | None = None

    def __len__(self) -> int:
        return self.pool_size if self.positions is None else len(self.positions)

    def to_pool(self, values: NDArray[Any], missing: Any, num_workers: int) -> NDArray[Any]:
        """Return values [n] in the order of the pool [M]; `missing` for examples without a row."""
        if (positions := self.positions) is None:
            return values
        moved = np.full(self.pool_size, missing, values.dtype)

        def scatter(block: slice) -> None:
            # NumPy converts other indices than these one by one
            moved[positions[block].astype(np.intp)] = values[block]

        map_threads(scatter, blocks(len(values), _BLOCK), num_workers)
        return moved

    def from_pool(self, values: NDArray[Any], num_workers: int) -> NDArray[Any]:
        """Return values in the order of the pool [M] in this order [n]."""
        if (positions := self.positions) is None:
            return values
        moved = np.empty(len(positions), values.dtype)

        def gather(block: slice) -> None:
            moved[block] = values.take(positions[block].astype(np.intp))

        map_threads(gather, blocks(len(moved), _BLOCK), num_workers)
        return moved

    def move(
        self, values: NDArray[Any], order: RowOrder, missing: Any, num_workers: int
    ) -> NDArray[Any]:
        """Return values [n] in another order of the same pool; values that it lacks are dropped."""
        if order is self:
            return values
        return order.from_pool(self.to_pool(values, missing, num_workers), num_workers)


@dataclass(frozen=True, eq=False)
class Column:
    """A column of scores.

    Attributes:
        values: floats [n]; NaN for an example without a score.
        order: the examples that the values belong to. Columns of the same files share one object.
    """

    values: NDArray[np.floating]
    order: RowOrder

    def in_pool(self, num_workers: int = 1) -> NDArray[np.floating]:
        """Return the scores in the order of the pool [M]."""
        return self.order.to_pool(self.values, np.nan, num_workers)
