"""Looking up uids in img2dataset's tables beside all tars of a pool."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.uid_search import Hashes, find_uids
from datacomp_flyt.tars.uids import table_beside, uids_of_table
from datacomp_flyt.threads import map_threads

Halves = tuple[Hashes, Hashes]
"""The halves of some uids, sorted as pairs [n], n >= 1, no pair twice."""


def count_in_tables(
    tars: Sequence[str],
    wanted: Sequence[Halves],
    num_workers: int,
    progress: str | None = None,
) -> list[NDArray[np.int64]] | None:
    """Count the images of each uid in some tars, by the tables beside them.

    Args:
        tars: paths, or what webdataset opens.
        wanted: lists of uids to look for.
        num_workers: threads.
        progress: the text of the progress bar; None for no bar.

    Returns:
        int64 array [n] for each list; None if the table of a tar is missing or cannot be used.
    """
    if not all(os.path.isfile(table_beside(tar)) for tar in tars):
        return None

    lock = threading.Lock()
    times = [np.zeros(len(high), np.int64) for high, _ in wanted]

    def look(tar: str) -> bool:
        found = uids_of_table(tar)
        if found is None:
            return False
        for (high, low), sums in zip(wanted, times, strict=True):
            rows = find_uids(high, low, found.uids)
            with lock:
                np.add.at(sums, rows[rows >= 0], 1)
        return True

    return times if all(map_threads(look, tars, num_workers, progress, "tar")) else None
