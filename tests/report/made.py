"""Makes a small pool with captions, tars as img2dataset writes them, selections, and a report."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datacomp_flyt.cli import main
from datacomp_flyt.pool.subset import write_subset
from tests.conftest import MadePool, make_pool, sorted_uids, write_files

ROWS = 240
HOSTILE = "<script>alert('x')</script> & \"quoted\" \0\x1b[2J\u202edog\x85"


def make_captioned_pool(rows: int = ROWS) -> MadePool:
    """Make a pool with captions of a few words; the first caption holds HTML and controls."""
    pool = make_pool(rows)
    rng = np.random.default_rng(7)
    words = np.array(["dog", "cat", "photo", "sale", "tree", "ebook"])
    captions = [" ".join(row) for row in rng.choice(words, (rows, 4)).tolist()]
    pool.metadata["text"] = [HOSTILE, *captions[1:]]
    return pool


def jpeg(number: int, width: int = 400, height: int = 200) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (number % 256, 99, 180)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    """Write a tar of samples as img2dataset does: by key, the content by extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in members:
            for extension, content in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_tars(folder: Path, pool: MadePool, parts: int, index: bool) -> list[Path]:
    """Write the pool's pictures in tars; with `index`, img2dataset's parquet beside each."""
    paths = []
    for part, rows in enumerate(np.array_split(np.arange(len(pool.uids)), parts)):
        members = []
        for row in rows.tolist():
            about = json.dumps({"uid": pool.uids[row]}).encode()
            text = str(pool.metadata["text"][row]).encode()
            members.append((f"{row:09d}", {"jpg": jpeg(row), "txt": text, "json": about}))
        paths.append(folder / f"{part:08d}.tar")
        write_tar(paths[-1], members)
        if index:
            uids = [pool.uids[row] for row in rows]
            lost = "f" * 32  # listed there although it could not be downloaded
            table = {
                "uid": [*uids, lost],
                "status": ["success"] * len(uids) + ["failed_to_download"],
            }
            pq.write_table(pa.table(table), paths[-1].with_suffix(".parquet"))
    return paths


def write_selections(folder: Path, pool: MadePool) -> dict[str, Path]:
    """Write two subsets.

    `often` draws 90 examples 1 to 6 times, and the one with the hostile caption 9 times. `once`
    draws 60 examples once, 30 of which are not in `often`.
    """
    uids, rng = sorted_uids(pool.uids), np.random.default_rng(3)
    often, once = np.zeros((2, len(uids)), np.int32)
    often[:90] = rng.integers(1, 7, 90)
    once[60:120] = 1
    often[uids == sorted_uids(pool.uids[:1])] = 9
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"often": folder / "often.npy", "once": folder / "once.npy"}
    for path, counts in zip(paths.values(), (often, once), strict=True):
        write_subset(path, uids, counts)
    return paths


class MadeReport:
    """A pool's files in a folder, and the report on them."""

    def __init__(self, folder: Path, seed: int | None = 1) -> None:
        self.folder, self.pool = folder, make_captioned_pool()
        self.metadata = write_files(folder / "metadata", self.pool.metadata, 3, seed)
        self.scores = write_files(folder / "scores", self.pool.scores, 2, seed)
        self.subsets = write_selections(folder, self.pool)
        self.out = folder / "out"

    def words(self, *more: object) -> list[str]:
        words = ["report", "--metadata_dir", self.metadata, "--scores_dir", self.scores]
        words += ["--subset", *map(str, self.subsets.values()), "--num_workers", "2"]
        return [*words, "--out", str(self.out), *map(str, more)]

    def run(self, *more: object) -> str:
        """Run `datacomp-flyt report` and return the page."""
        run(self.words(*more))
        return (self.out / "index.html").read_text()


def run(words: list[str]) -> None:
    """Run `datacomp-flyt` and check that it succeeds."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def without_inputs(page: str) -> str:
    """Remove the command and the inputs' names and hashes from a page."""
    page = re.sub(r"<pre>.*?</pre>", "", page, count=1, flags=re.S)
    return re.sub(r'<section aria-labelledby="inputs">.*?</section>', "", page, flags=re.S)
