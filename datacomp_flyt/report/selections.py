"""The subsets that a report compares, and how often each draws which examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.arguments import check_list
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import UidIndex, find_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.report.sample import PoolSample
from datacomp_flyt.tars.tables_beside import count_in_tables
from datacomp_flyt.threads import map_threads

MOST_SELECTIONS = 7
"""The number of colours that all readers can tell apart."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """A subset with a name.

    Attributes:
        name: the name in the report.
        path: the .npy file.
        high, low: the halves of its distinct uids, uint64 [n], sorted as pairs.
        counts: the number of draws of each uid [n].
    """

    name: str
    path: str
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    counts: NDArray[np.integer]

    @property
    def draws(self) -> int:
        """The number of draws."""
        return int(self.counts.sum(dtype=np.int64))

    @property
    def distinct(self) -> int:
        """The number of distinct examples."""
        return len(self.counts)

    @property
    def effective(self) -> float:
        """The effective number of examples, (Σc)² / Σc² for counts c."""
        return self.draws**2 / float(np.square(self.counts, dtype=np.float64).sum())

    @property
    def most(self) -> int:
        """The largest number of draws of one example."""
        return int(self.counts.max())

    @property
    def uids(self) -> NDArray[np.void]:
        """The distinct uids, `u8,u8` [n], sorted."""
        uids = np.empty(self.distinct, UID_DTYPE)
        uids["f0"], uids["f1"] = self.high, self.low
        return uids

    def counts_of(self, uids: NDArray[np.void]) -> NDArray[np.int64]:
        """Return the number of draws of each of these uids [m]."""
        rows = find_uids(self.high, self.low, uids)
        return np.where(rows >= 0, self.counts[rows], 0).astype(np.int64)


def name_subsets(subsets: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, str]:
    """Name the subsets of a report.

    Args:
        subsets: files by name, or `FILE` and `NAME=FILE`, where a file without a name is called by
            its stem.

    Returns:
        the paths by name, in the same order.

    Raises:
        InputError: two subsets have one name, or there are too many to tell apart.
    """
    if not isinstance(subsets, Mapping):
        check_list(subsets, "--subset")
    if len(subsets) > MOST_SELECTIONS:
        raise InputError(
            f"--subset names {len(subsets)} files and a report compares at most "
            f"{MOST_SELECTIONS}: make two reports"
        )
    if isinstance(subsets, Mapping):
        return {name: str(path) for name, path in subsets.items()}
    paths: dict[str, str] = {}
    for text in map(str, subsets):
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).stem, text
        if not name or name in paths:
            raise InputError(
                f"--subset {text} has the name {name!r}"
                + (" of another" if name else "")
                + ": give each a name of its own, NAME=path"
            )
        paths[name] = path
    return paths


def read_selections(paths: Mapping[str, str], num_workers: int) -> list[Selection]:
    """Read subsets, given by name.

    Raises:
        InputError: a file is not a subset.
    """

    def read(item: tuple[str, str]) -> Selection:
        name, path = item
        uids, counts = read_subset(path)
        return Selection(name, path, uids["f0"].copy(), uids["f1"].copy(), counts)

    return map_threads(read, paths.items(), num_workers, "reading subsets")


def draws_with_image(
    selections: Sequence[Selection],
    available: Available | None,
    tars: Sequence[str] | None,
    num_workers: int,
) -> list[int] | None:
    """Count the draws of each selection that have an image; None if it is not known.

    Args:
        selections: the selections.
        available: the list of images, if given.
        tars: the tars, which are used without such a list if img2dataset's table lies beside each.
        num_workers: threads.
    """
    if available is not None:
        have_image = [available.contains(selection.uids) for selection in selections]
    else:
        indices = [UidIndex(selection.high, selection.low) for selection in selections]
        counts = count_in_tables(tars, indices, num_workers, "reading tables") if tars else None
        if counts is None:
            return None
        have_image = [images > 0 for images in counts]
    return [
        int(selection.counts[has_image].sum(dtype=np.int64))
        for selection, has_image in zip(selections, have_image, strict=True)
    ]


def check_in_pool(selection: Selection, sample: PoolSample) -> None:
    """Raise InputError if a sampled uid of the selection is not in the pool."""
    uids = selection.uids
    uids = uids[sample.rule.takes(uids)]
    unknown_uids = uids[find_uids(sample.pool.high, sample.pool.low, uids) < 0]
    if len(unknown_uids):
        raise InputError(
            f"--subset {selection.path} has uids that are not in the pool (one is "
            f"{format_uid(unknown_uids[0])}; {len(unknown_uids):,} of {len(uids):,} looked up): "
            "give the --metadata_dir that it was selected from"
        )


def overlap(selections: Sequence[Selection]) -> tuple[Matrix, Matrix]:
    """Compute what selections have in common, as shares of each row's selection.

    Returns:
        the shares of the draws, Σ min(c_row, c_column) / Σ c_row [k, k], and the shares of the
        distinct examples [k, k].
    """
    size = len(selections)
    draws, distinct = np.eye(size), np.eye(size)
    for row, one in enumerate(selections):
        uids = one.uids
        for column in range(row):
            other = selections[column]
            counts = other.counts_of(uids)
            common = float(np.minimum(counts, one.counts).sum())
            examples = int(np.count_nonzero(counts))
            draws[row, column], draws[column, row] = common / one.draws, common / other.draws
            distinct[row, column] = examples / one.distinct
            distinct[column, row] = examples / other.distinct
    return draws, distinct
