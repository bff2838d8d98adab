"""Builders of small pools and score tables in DataComp's layout."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.errors import InputError
from tests.oracles.mixing import PAPER_WEIGHTS
from tests.oracles.selection import parse_uid, uid_array

with contextlib.suppress(ImportError):  # DataComp's own environment does not have it
    import hypothesis

    # on a busy machine every deadline is too short
    hypothesis.settings.register_profile(
        "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = 120
PUBLISHED = tuple(PAPER_WEIGHTS)

Columns = dict[str, Any]


class MadePool(NamedTuple):
    """Columns of a pool in no order; row i of each belongs to `uids[i]`."""

    uids: list[str]
    metadata: Columns
    scores: Columns


def hex_uids(count: int, tag: str = "pool") -> list[str]:
    """Return unsorted distinct uids; every third shares its first 64 bits with the one before."""
    uids = [hashlib.md5(f"{tag} {row}".encode()).hexdigest() for row in range(count)]
    for row in range(2, count, 3):
        uids[row] = uids[row - 1][:16] + uids[row][16:]
    return uids


def sorted_uids(uids: Sequence[str]) -> np.ndarray:
    return uid_array(sorted(map(parse_uid, uids)))


def make_pool(rows: int = ROWS, seed: int = 0, tag: str = "pool") -> MadePool:
    """Return metadata with DataComp's CLIP scores, and the twelve published score columns."""
    rng = np.random.default_rng(seed)
    uids = hex_uids(rows, tag)
    metadata = {
        "uid": uids,
        "text": [f"caption of {uid}" for uid in uids],
        "original_width": rng.integers(16, 900, rows),
        "clip_b32_similarity_score": rng.normal(0.25, 0.05, rows).astype(np.float32),
        "clip_l14_similarity_score": rng.normal(0.2, 0.05, rows).astype(np.float32),
    }
    scores = {"uid": uids} | {
        name: rng.normal(index - 6, 0.1 + index, rows).astype(np.float32)
        for index, name in enumerate(PUBLISHED)
    }
    return MadePool(uids, metadata, scores)


def take(columns: Mapping[str, Any], rows: Sequence[int]) -> Columns:
    """Return the given rows of the columns, in the given order."""
    return {
        name: values[np.asarray(rows)]
        if isinstance(values, np.ndarray)
        else [values[row] for row in rows]
        for name, values in columns.items()
    }


def write_parquet(path: Path | str, columns: Mapping[str, Any], **options: Any) -> str:
    """Write one parquet file to a local path or an address of fsspec, and return the path."""
    with fsspec.open(str(path), "wb") as file:
        pq.write_table(pa.table(dict(columns)), file, **options)
    return str(path)


def write_files(
    folder: Path | str, columns: Mapping[str, Any], parts: int = 1, seed: int | None = None
) -> str:
    """Write the columns to several files; a seed shuffles rows and file names."""
    if "://" not in str(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    count = len(columns["uid"])
    rows, names = np.arange(count), np.arange(parts)
    if seed is not None:
        rng = np.random.default_rng(seed)
        rows, names = rng.permutation(count), rng.permutation(parts)
    for name, part in zip(names, np.array_split(rows, parts), strict=True):
        write_parquet(f"{folder}/part-{name:05d}.parquet", take(columns, part.tolist()))
    return str(folder)


def refusal(function: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """Return the message of the InputError that a call raises; it must be one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.fixture
def memory_folder() -> str:
    """Make an empty folder in fsspec's memory filesystem, and return its address."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    fs.mkdir("/pool")
    return "memory://pool"


@pytest.fixture
def files_in(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Return a function that reads every file in the test's folder, hidden ones too."""

    def content() -> dict[str, bytes]:
        paths = (path for path in sorted(tmp_path.rglob("*")) if path.is_file())
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths}

    return content
