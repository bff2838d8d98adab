"""Writes the output of DataComp's resharder: parts of a subset, and the tars of a pool."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from datacomp_flyt.pool.subset import write_subset
from tests.conftest import sorted_uids

PER_TAR = 4


def write_tar(path: Path, samples: Iterable[tuple[str, str]]) -> None:
    """Write a tar of samples, given as (key, uid), each an image, a caption and a json."""
    with tarfile.open(path, "w") as archive:
        for key, uid in samples:
            for ending, content in (
                ("jpg", b"no picture"),
                ("json", json.dumps({"uid": uid}).encode()),
                ("txt", b"a caption"),
            ):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_part(
    folder: Path,
    subset: Path,
    draws: Mapping[str, int],
    first_shard: int = 0,
    num_shards: int | None = 2,
) -> Path:
    """Write the output of one run: the draws of each uid, four in a tar."""
    folder.mkdir()
    keys = [(f"{uid}-{number}", uid) for uid, times in draws.items() for number in range(times)]
    tars = [keys[start : start + PER_TAR] for start in range(0, len(keys), PER_TAR)]
    for number, samples in enumerate(tars):
        write_tar(folder / f"{number:08d}.tar", samples)
        stats = {"successes": len(samples)}
        (folder / f"{number:08d}_stats.json").write_text(json.dumps(stats))
    shutil.copy(subset, folder / "sample_ids.npy")
    meta = {
        "input_dir": "shards",
        "first_shard": str(first_shard),
        "num_shards": str(num_shards),
        "output_shard_format": "{:08d}.tar",
        "output_shard_count": len(tars),
        "output_count": len(keys),
        "worker_success": 1,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def write_subset_of(path: Path, draws: Mapping[str, int]) -> Path:
    """Write a subset with these numbers of draws."""
    uids = sorted(draws)
    write_subset(path, sorted_uids(uids), np.array([draws[uid] for uid in uids]))
    return path
