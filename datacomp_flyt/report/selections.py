"""The subsets that a report compares: how often each draws which examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import UidIndex, find_uids
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.report.sample import PoolSample
from datacomp_flyt.tars.tables_beside import count_in_tables
from datacomp_flyt.threads import map_threads

MOST_SELECTIONS = 7
"""As many as there are colours that all readers can tell apart."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """A subset under a name.

    Attributes:
        name: of the flag, or the file's stem.
        path: of the .npy file.
        high, low: the halves of its distinct uids, uint64 [n], sorted as pairs.
        counts: how often each is drawn [n].
    """

    name: str
    path: str
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    counts: NDArray[np.integer]

    @property
    def draws(self) -> int:
        return int(self.counts.sum(dtype=np.int64))

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def effective(self) -> float:
        """Examples that would weigh as much if all were drawn equally often: (Σc)² / Σc²."""
        return self.draws**2 / float(np.square(self.counts, dtype=np.float64).sum())

    @property
    def most(self) -> int:
        return int(self.counts.max())

    @property
    def uids(self) -> NDArray[np.void]:
        uids = np.empty(self.distinct, UID_DTYPE)
        uids["f0"], uids["f1"] = self.high, self.low
        return uids

    def counts_of(self, uids: NDArray[np.void]) -> NDArray[np.int64]:
        """How often each of these uids [m] is drawn."""
        places = find_uids(self.high, self.low, uids)
        return np.where(places >= 0, self.counts[places], 0).astype(np.int64)


def read_selections(given: Sequence[str], num_workers: int) -> list[Selection]:
    """Read the subsets of `--subset`: paths, or `NAME=path`.

    Raises:
        InputError: a file is no subset, two have one name, or there are too many to tell apart.
    """
    if len(given) > MOST_SELECTIONS:
        raise InputError(
            f"--subset names {len(given)} files and a report compares at most {MOST_SELECTIONS}: "
            "make two reports"
        )
    paths: dict[str, str] = {}
    for text in given:
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

    def read(item: tuple[str, str]) -> Selection:
        uids, counts = read_subset(item[1])
        return Selection(*item, uids["f0"].copy(), uids["f1"].copy(), counts)

    return map_threads(read, paths.items(), num_workers, "reading subsets")


def draws_with_image(
    selections: Sequence[Selection],
    available: Available | None,
    tars: Sequence[str] | None,
    num_workers: int,
) -> list[int] | None:
    """Count the draws of each selection that have an image; None if that is not known.

    Args:
        selections: the selections.
        available: the list of images, if given.
        tars: otherwise the tars, which are used if each has a table of img2dataset beside it.
        num_workers: threads.
    """
    if available is not None:
        there = [available.contains(selection.uids) for selection in selections]
    else:
        wanted = [UidIndex(selection.high, selection.low) for selection in selections]
        times = count_in_tables(tars, wanted, num_workers, "reading tables") if tars else None
        if times is None:
            return None
        there = [some > 0 for some in times]
    return [
        int(selection.counts[some].sum(dtype=np.int64))
        for selection, some in zip(selections, there, strict=True)
    ]


def check_in_pool(selection: Selection, sample: PoolSample) -> None:
    """Raise InputError where a sampled uid of the selection is not in the pool."""
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
    """What selections have in common, as shares of each row's selection.

    Returns:
        of its draws, Σ min(c_row, c_column) / Σ c_row [k, k], and of its distinct examples [k, k].
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
