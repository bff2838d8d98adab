"""A pool as img2dataset downloads it: tars, and tables that list failures too."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.conftest import make_pool, take, write_files, write_parquet

FAILED = ("failed_to_download", "failed_to_resize", None)
JPG = b"\xff\xd8 no picture, but nobody looks"


def write_tar(
    path: Path, uids: Mapping[str, str | None], image: str | None = "jpg", end: bool = True
) -> Path:
    """Write a tar of samples by key; a uid of None is left out of the json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, uid in uids.items():
            facts = {"key": key} if uid is None else {"key": key, "uid": uid}
            files = {"txt": b"a caption", "json": json.dumps(facts).encode()}
            if image is not None:
                files = {image: JPG, **files}
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_shard(
    folder: Path,
    number: int,
    uids: Sequence[str],
    there: Sequence[bool],
    table: bool = True,
    **columns: Any,
) -> Path:
    """Write a tar of the downloaded uids, and the table of all uids."""
    keys = [f"{number:05d}{row:04d}" for row in range(len(uids))]
    samples = {key: uid for key, uid, ok in zip(keys, uids, there, strict=True) if ok}
    tar = write_tar(folder / f"{number:08d}.tar", samples)
    (folder / f"{number:08d}_stats.json").write_text("{}")
    if table:
        status = ["success" if ok else FAILED[row % len(FAILED)] for row, ok in enumerate(there)]
        listed = {"uid": list(uids), "key": keys, "status": pa.array(status, pa.string())}
        write_parquet(tar.with_suffix(".parquet"), listed | columns)
    return tar


@dataclass(frozen=True)
class Download:
    """Write a pool, of which some images could not be downloaded.

    Attributes:
        folder: holds `shards`, `metadata`, `scores`, and the same without the rows that are gone
            in `there_metadata` and `there_scores`.
        uids: of all rows.
        there: which rows have an image.
    """

    folder: Path
    uids: list[str]
    there: np.ndarray

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def at_hand(self) -> list[str]:
        return [uid for uid, ok in zip(self.uids, self.there, strict=True) if ok]


def write_download(
    folder: Path, rows: int = 120, num_shards: int = 4, seed: int = 0, tables: bool = True
) -> Download:
    """A pool of which a quarter of the images is missing."""
    pool = make_pool(rows)
    rng = np.random.default_rng(seed)
    there = rng.permutation(rows) >= rows // 4
    for number, part in enumerate(np.array_split(rng.permutation(rows), num_shards)):
        uids = [pool.uids[row] for row in part]
        write_shard(folder / "shards", number, uids, there[part].tolist(), tables)
    kept = np.flatnonzero(there).tolist()
    write_files(folder / "metadata", pool.metadata, 3, seed=1)
    write_files(folder / "scores", pool.scores, 2, seed=2)
    write_files(folder / "there_metadata", take(pool.metadata, kept), 2, seed=3)
    write_files(folder / "there_scores", take(pool.scores, kept), 3, seed=4)
    return Download(folder, pool.uids, there)
