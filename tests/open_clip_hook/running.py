"""Runs trainer scripts with several releases of open_clip.

OPEN_CLIP_2_16   folder of `pip install --no-deps --target FOLDER open_clip_torch==2.16.1`
OPEN_CLIP_DIR    a checkout of open_clip's development head
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datacomp_flyt.pool.uids import UID_DTYPE

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
STAND_IN = REPOSITORY / "tests" / "host" / "stand_in"
SHARDS = REPOSITORY / "datacomp_flyt" / "demo" / "pool" / "shards"
SHRUNK_DATACOMP = HERE / "shrunk_datacomp.py"
TRAIN_CLIP = ("-m", "datacomp_flyt.cli", "train_clip")

INSTALLED = pytest.param("installed", id="installed")
OLDEST = pytest.param("2.16.1", id="2.16.1", marks=pytest.mark.slow)
HEAD = pytest.param("head", id="head", marks=pytest.mark.slow)


def environment(open_clip: str, **variables: str | Path) -> dict[str, str]:
    """Return the environment of a Python that imports this open_clip; skip the test if missing."""
    path = [str(REPOSITORY)]
    if open_clip == "2.16.1":
        path.insert(0, _folder("OPEN_CLIP_2_16", "open_clip_torch 2.16.1"))
    elif open_clip == "head":
        path.insert(0, os.path.join(_folder("OPEN_CLIP_DIR", "a checkout of open_clip"), "src"))
    given = {name: str(value) for name, value in variables.items()}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **given,
    }


def _folder(variable: str, content: str) -> str:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} does not name {content}")
    return folder


def datacomp_dir() -> Path:
    return Path(_folder("DATACOMP_DIR", "a checkout of mlfoundations/datacomp"))


def python(
    *words: str | Path,
    env: dict[str, str],
    cwd: Path | None = None,
    code: int | None = 0,
    program: str = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Run Python; `code` is the expected exit code, None for any."""
    ended = subprocess.run(
        [program, *map(str, words)],
        check=False,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )
    if code is not None:
        assert ended.returncode == code, ended.stdout[-2_000:] + ended.stderr[-6_000:]
    return ended


def zero_shot(
    checkpoint: Path | None, env: dict[str, str], uids: Path | None = None
) -> dict[str, float]:
    """Return the output of `zero_shot_demo.py` for a checkpoint."""
    words = ["-" if checkpoint is None else checkpoint, *([] if uids is None else [uids])]
    env = {**env, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # written by the test itself
    ended = python(HERE / "zero_shot_demo.py", *words, env=env)
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def _pool() -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files in the demo pool's tars."""
    for path in sorted(SHARDS.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def pool_concepts() -> dict[str, str]:
    """Return the emoji drawn in each example of the demo pool, by uid."""
    samples = [json.loads(content) for name, content in _pool() if name.endswith(".json")]
    return {sample["uid"]: Path(sample["url"]).stem for sample in samples}


def pixel_digests() -> dict[str, str]:
    """Return the digest of `count_samples.py` for each picture of the demo pool, by uid."""
    pictures, uids = {}, {}
    for name, content in _pool():
        if name.endswith(".jpg"):
            pixels = Image.open(io.BytesIO(content)).convert("RGB").tobytes()
            digest = hashlib.md5(pixels).digest()
            pictures[Path(name).stem] = f"{int.from_bytes(digest[:8], 'big') >> 1:016x}"
        elif name.endswith(".json"):
            uids[Path(name).stem] = json.loads(content)["uid"]
    return {uid: pictures[key] for key, uid in uids.items()}


def write_repeats(path: Path, counts: Mapping[str, int]) -> Path:
    """Write a subset that has each uid as often as given."""
    pairs = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in counts]
    repeated = np.repeat(np.array(pairs, UID_DTYPE), list(counts.values()))
    np.save(path, np.sort(repeated, order=["f0", "f1"]))
    return path
