"""Resharding a subset in several runs of DataComp's resharder, as in docs/many_nodes.md.

DATACOMP_DIR       a checkout of mlfoundations/datacomp at 4a8df19 (read, never changed)
RESHARDER_PYTHON   a Python that can run its resharder.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip")

from datacomp_flyt.tars.samples import read_tar, stored_uid
from tests.open_clip_hook.running import (
    REPOSITORY,
    SHARDS,
    datacomp_dir,
    environment,
    pool_concepts,
    python,
    write_repeats,
)

REPEATS = {uid: 1 + row % 4 for row, uid in enumerate(pool_concepts()) if row % 3}


def reshard(folder: Path, subset: Path, first_shard: int, count: int) -> Path:
    """Reshard `count` shards from `first_shard` on, as one node does."""
    program = os.environ.get("RESHARDER_PYTHON")
    if not program:
        pytest.skip("RESHARDER_PYTHON does not name a Python that runs DataComp's resharder.py")
    folder.mkdir(parents=True)
    words = ["-i", SHARDS, "-o", folder, "-s", subset, "--shard-size", "50", "-j", "1"]
    words += ["--first-shard", str(first_shard), "--num-shards", str(count)]
    env = {**environment("installed"), "PYTHONPATH": ""}
    python(datacomp_dir() / "resharder.py", *words, env=env, program=program)
    return folder


def check(*words: str | Path, code: int) -> str:
    """Run `datacomp-flyt check_parts` and return its output."""
    env = environment("installed")
    command = ["-m", "datacomp_flyt.cli", "check_parts", "--num_workers", "1"]
    ended = python(*command, *words, env=env, code=code)
    return ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_parts_of_the_real_resharder(tmp_path: Path) -> None:
    subset = tmp_path / "subset.npy"
    write_repeats(subset, REPEATS)
    a = reshard(tmp_path / "resharded" / "part_0", subset, 0, 2)
    b = reshard(tmp_path / "resharded" / "part_1", subset, 2, 2)
    output = check("--subset", subset, a, b, code=0)
    assert "the parts add up" in output
    assert "of shards 0 to 1 of" in output
    assert "of shards 2 to 3 of" in output
    repeats: dict[str, int] = {}
    for tar in [*a.glob("*.tar"), *b.glob("*.tar")]:
        for sample in read_tar(str(tar)):
            uid = stored_uid(sample)
            repeats[uid] = repeats.get(uid, 0) + 1
    assert repeats == REPEATS

    # parts that overlap, and parts that lack a shard
    twice = reshard(tmp_path / "twice", subset, 1, 3)
    output = check("--subset", subset, a, twice, code=1)
    assert "examples are in more than one part" in output
    assert "shards 1 to 3 of" in output
    last = reshard(tmp_path / "last", subset, 3, 1)
    output = check("--subset", subset, a, last, "--shards_dir", SHARDS, code=1)
    assert f"the first is {SHARDS}/00000002.tar" in output

    # DataComp's train.py finds all tars of the parts, from their parent folder or from a list
    script = (
        "import sys, types, json\n"
        "for name in ('training', 'training.distributed', 'training.main'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules['training.distributed'].world_info_from_env = None\n"
        "sys.modules['training.main'].main = None\n"
        "import train\n"
        "from braceexpand import braceexpand\n"
        "from pathlib import Path\n"
        "found, _ = train.get_input_shards(Path(sys.argv[1]), None)\n"
        "print(json.dumps([u for p in found.split('::') for u in braceexpand(p)]))\n"
    )
    env = {**environment("installed"), "PYTHONPATH": f"{datacomp_dir()}:{REPOSITORY}"}
    expected = sorted(str(tar) for part in (a, b) for tar in part.glob("*.tar"))
    assert len(expected) >= 4
    for data_dir in (a.parent, f"{a}::{b}"):
        ended = python("-W", "ignore", "-c", script, data_dir, env=env)
        assert sorted(json.loads(ended.stdout.splitlines()[-1])) == expected
    assert np.load(a / "sample_ids.npy").tobytes() == np.load(subset).tobytes()
