"""Looking up uids in img2dataset's tables beside all tars of a pool."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.engines.threads import map_threads
from datacomp_flyt.pool.tar_uids import table_beside, uids_of_table
from datacomp_flyt.pool.uid_search import find_uids


def count_in_tables(
    tars: Sequence[str],
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
    num_workers: int,
    progress: str | None = None,
) -> NDArray[np.int64] | None:
    """How many images of each uid some tars have, by the tables beside them.

    Args:
        tars: paths, or what webdataset opens.
        high, low: the halves of the uids to look for, sorted as pairs [n], n >= 1, no pair twice.
        num_workers: threads.
        progress: text of a progress bar; None for none.

    Returns:
        int64 array [n]; None where the table of a tar is missing or cannot be used.
    """
    if not all(os.path.isfile(table_beside(tar)) for tar in tars):
        return None

    def look(tar: str) -> NDArray[np.signedinteger] | None:
        found = uids_of_table(tar)
        if found is None:
            return None
        rows = find_uids(high, low, found.uids)
        return rows[rows >= 0]

    times = np.zeros(len(high), np.int64)
    for rows in map_threads(look, tars, num_workers, progress, "tar"):
        if rows is None:
            return None
        times += np.bincount(rows, minlength=len(high))
    return times
