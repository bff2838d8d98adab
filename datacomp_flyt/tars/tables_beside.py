"""Looks up uids in img2dataset's tables beside the tars of a pool."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.pool.uid_search import UidIndex
from datacomp_flyt.tars.uids import table_beside, uids_of_table
from datacomp_flyt.threads import map_threads


def count_in_tables(
    tars: Sequence[str],
    wanted: Sequence[UidIndex],
    num_workers: int,
    progress: str | None = None,
) -> list[NDArray[np.int64]] | None:
    """Count the images of each uid in some tars, by the tables beside them.

    Args:
        tars: paths, or what webdataset opens.
        wanted: lists of at least one uid to look for.
        num_workers: the number of threads.
        progress: the label of the progress bar; None for no bar.

    Returns:
        int64 array [n] for each list; None if the table of a tar is missing or cannot be used.
    """
    if not all(os.path.isfile(table_beside(tar)) for tar in tars):
        return None

    lock = threading.Lock()
    counts = [np.zeros(len(index), np.int64) for index in wanted]

    def count(tar: str) -> bool:
        table = uids_of_table(tar)
        if table is None:
            return False
        for index, sums in zip(wanted, counts, strict=True):
            rows = index.locate(table.uids)
            with lock:
                np.add.at(sums, rows[rows >= 0], 1)
        return True

    return counts if all(map_threads(count, tars, num_workers, progress, "tar")) else None
