"""Labels of pairs: a table of `uid` and `kind`, by which rounds are judged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError, first_line
from datacomp_flyt.pool.uids import decode_uids


def read_labels(path: Path) -> tuple[NDArray[np.void], NDArray[np.object_]]:
    """Return the uids [n], as `u8,u8`, and the kinds [n], as strings, of a table.

    Raises:
        InputError: the file is no such table, has no rows, or has a uid twice.
    """
    try:
        table = pq.read_table(path, columns=["uid", "kind"])
        table.validate(full=True)  # reading does not check UTF-8
        uids = decode_uids(table["uid"])
        kinds = np.array(table["kind"].to_pylist(), np.object_)
    except Exception as error:  # Arrow raises a dozen types for damaged files
        raise InputError(
            f"--labels {path} is no parquet file with `uid` and `kind` ({first_line(error)})"
        ) from None
    if not len(uids) or not all(isinstance(kind, str) for kind in kinds):
        raise InputError(f"--labels {path} has no rows, or rows whose `kind` is no text")
    order = np.sort(uids)
    if (order[1:] == order[:-1]).any():
        raise InputError(f"--labels {path} has a uid twice: keep one row for each")
    return uids, kinds


def check_noise_kinds(path: Path, noise_kinds: Iterable[str]) -> None:
    """Raise InputError unless each of the kinds occurs in a table of labels."""
    kinds = set(read_labels(path)[1])
    for kind in noise_kinds:
        if kind not in kinds:
            raise InputError(
                f"--noise_kinds {kind}: {path} has no such kind, only "
                f"{', '.join(sorted(map(str, kinds))[:20])}"
            )
