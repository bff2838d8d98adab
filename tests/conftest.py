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

    # others may keep the processor from us, and no input of ours is too slow to make
    hypothesis.settings.register_profile(
        "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = 120
PUBLISHED = tuple(PAPER_WEIGHTS)

Columns = dict[str, Any]


class MadePool(NamedTuple):
    """Row i of every column belongs to `uids[i]`; nothing is sorted."""

    uids: list[str]
    metadata: Columns
    scores: Columns


def hex_uids(number: int, tag: str = "pool") -> list[str]:
    """Different uids in no order; each third one shares its first 64 bits with the one before."""
    uids = [hashlib.md5(f"{tag} {row}".encode()).hexdigest() for row in range(number)]
    for row in range(2, number, 3):
        uids[row] = uids[row - 1][:16] + uids[row][16:]
    return uids


def sorted_uids(uids: Sequence[str]) -> np.ndarray:
    return uid_array(sorted(map(parse_uid, uids)))


def make_pool(rows: int = ROWS, seed: int = 0, tag: str = "pool") -> MadePool:
    """Metadata with DataComp's CLIP scores, and FLYT's twelve published score columns."""
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
        name: rng.normal(place - 6, 0.1 + place, rows).astype(np.float32)
        for place, name in enumerate(PUBLISHED)
    }
    return MadePool(uids, metadata, scores)


def take(columns: Mapping[str, Any], rows: Sequence[int]) -> Columns:
    """The columns at these rows, in this order."""
    return {
        name: values[np.asarray(rows)]
        if isinstance(values, np.ndarray)
        else [values[row] for row in rows]
        for name, values in columns.items()
    }


def write_parquet(path: Path | str, columns: Mapping[str, Any], **options: Any) -> str:
    """One file, at a local path or one that fsspec opens."""
    with fsspec.open(str(path), "wb") as file:
        pq.write_table(pa.table(dict(columns)), file, **options)
    return str(path)


def write_files(
    folder: Path | str, columns: Mapping[str, Any], parts: int = 1, seed: int | None = None
) -> str:
    """The columns cut into files; with a seed, rows and file names come in another order."""
    if "://" not in str(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    number = len(columns["uid"])
    rows, names = np.arange(number), np.arange(parts)
    if seed is not None:
        rng = np.random.default_rng(seed)
        rows, names = rng.permutation(number), rng.permutation(parts)
    for name, part in zip(names, np.array_split(rows, parts), strict=True):
        write_parquet(f"{folder}/part-{name:05d}.parquet", take(columns, part.tolist()))
    return str(folder)


def refusal(function: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The one line that an InputError says."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.fixture
def memory_folder() -> str:
    """An empty folder of fsspec's memory filesystem."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    fs.mkdir("/pool")
    return "memory://pool"


@pytest.fixture
def files_in(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Every file below the test's folder, hidden ones too."""

    def content() -> dict[str, bytes]:
        found = (path for path in sorted(tmp_path.rglob("*")) if path.is_file())
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in found}

    return content
