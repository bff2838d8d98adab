"""A finished Self-Filtering run over the pool of `make_pool`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.self_filtering.finalize import finalize
from tests.conftest import make_pool
from tests.oracles.selection import parse_uid, uid_array

POOL = make_pool()
COUNTS = np.random.default_rng(0).integers(0, 4, len(POOL.uids))


def run_dir(folder: Path, counts: np.ndarray = COUNTS) -> Path:
    """Write a finished run of one round, and return its folder."""
    uids = uid_array(map(parse_uid, POOL.uids))
    order = np.argsort(uids)
    for round_index in (0, 1):
        (folder / f"round_{round_index}").mkdir(parents=True)
    write_subset(folder / "round_1" / "subset.npy", uids[order], counts[order])
    finalize(folder, 1)
    return folder
