"""The result of sampling: how often each example is drawn."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.pool.subset import describe_counts, read_subset, write_subset


@dataclass(frozen=True, eq=False, repr=False)
class Subset:
    """A subset of a pool, repeats counted.

    Attributes:
        uids: `u8,u8` array [M], sorted, no uid twice: the examples that could be drawn, or, of a
            subset that was read from a file, those that are drawn.
        counts: how often each is drawn, an integer array [M]; 0 for examples that are not drawn.
    """

    uids: NDArray[np.void]
    counts: NDArray[np.integer]

    def __len__(self) -> int:
        """The number of draws."""
        return int(self.counts.sum(dtype=np.int64))

    def save(self, path: str | Path) -> None:
        """Write the sorted `u8,u8` .npy file, repeats kept, that DataComp's resharder reads.

        Raises:
            InputError: the path is a cloud path, or cannot be written.
        """
        write_subset(check_save_path(path, "--save_path"), self.uids, self.counts)

    @staticmethod
    def read(path: str | Path) -> Subset:
        """Read a file that `save` or DataComp's `baselines.py` wrote.

        Raises:
            InputError: the file is not a subset that the resharder would take.
        """
        return Subset(*read_subset(path))

    def summary(self) -> str:
        """Return the numbers of draws and examples, and how often examples are drawn, in lines.

        The effective number of examples is (Σc)² / Σc² for counts c: the number of examples if all
        are drawn equally often, and smaller the more the draws are concentrated on few.
        """
        return "\n".join(describe_counts(self.counts))

    def __repr__(self) -> str:
        num_drawn = int(np.count_nonzero(self.counts))
        return f"<subset of {len(self):,} draws of {num_drawn:,} examples>"

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary().splitlines())
        return f"<b>Subset</b><ul>{items}</ul>"
