"""Small tables, subsets and batches for tests of the hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from datacomp_flyt.open_clip_hook.deduplicate_batches import Batch
from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.pool.uids import decode_uids
from tests.flyt.tars import uid_of


def uids_of(numbers: Sequence[int]) -> NDArray[np.void]:
    """Return the `u8,u8` array of examples, in the given order."""
    return decode_uids(pa.array([uid_of(number) for number in numbers], pa.string()))


def write_table(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """Write parquet of `uid`, given as numbers of examples, and other columns."""
    uids = [uid_of(n) if isinstance(n, int) else n for n in columns["uid"]]
    pq.write_table(pa.table({**columns, "uid": pa.array(uids, pa.string())}), path)
    return path


def write_counts(path: Path, counts: Mapping[int, int]) -> Path:
    """Write a subset in which example n is drawn counts[n] times."""
    uids = uids_of(list(counts))
    order = np.argsort(uids)
    write_subset(path, uids[order], np.array(list(counts.values()))[order])
    return path


def batch_of(numbers: Sequence[int]) -> Batch:
    """Return a batch whose images and texts are filled with the example's number."""
    images = torch.tensor(numbers).float().reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    texts = torch.tensor(numbers).reshape(-1, 1).expand(-1, 5).clone()
    return Batch(images, texts, uids_of(numbers))
