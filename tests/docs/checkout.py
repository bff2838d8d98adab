"""A home folder with a DataComp checkout, a pool and the files that the pages name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datacomp_flyt.datacomp.checkout_patch import install, load_patches
from tests.conftest import sorted_uids
from tests.docs.pages import REPOSITORY
from tests.host.pool import SCORE_COLUMNS
from tests.host.stand_in_patch import STAND_IN, carry_over

HOST = Path(os.environ.get("DATACOMP_DIR", STAND_IN))
DEMO = REPOSITORY / "datacomp_flyt" / "demo"
_TRAIN = """\
import os, runpy, sys
os.environ["DATACOMP_DIR"] = {host!r}
sys.argv += ["--precision", "fp32", "--workers", "1", "--num_checkpoints", "1"]
runpy.run_path({script!r}, run_name="__main__")
"""
_PROGRAM = """\
#!/bin/sh
case "$1" in
    baselines.py) exec ${{DATACOMP_PYTHON:-{python}}} "$@" ;;
    resharder.py) exec ${{RESHARDER_PYTHON:-{python}}} "$@" ;;
esac
exec {python} {words} "$@"
"""
_PREPARE = """\
set -e
datacomp-flyt train --preset tiny --features embeddings --num_steps 2 --metadata_dir metadata \\
    --train_data shards --downstream_dir downstream/imagenet --output_dir e_flyt
cp e_flyt/scoring_model.safetensors e_flyt.safetensors
for name in tiny_clip.pt unfiltered_medium.pt logs/dfn_{base,ft}/checkpoints/epoch_1.pt; do
    mkdir -p $(dirname $name) && cp e_flyt/reference_model.pt $name
done
TOP="python -m baselines_plugin --name top_fraction --column clip_l14_similarity_score --fraction"
$TOP 0.3 --metadata_dir metadata --save_path clip.npy
$TOP 0.3 --metadata_dir datacomp_flyt/demo/pool/metadata --save_path top.npy
$TOP 0.1 --metadata_dir imagenet_npz --save_path cc12m_top2m.npy
python -m baselines_plugin --name no_cap --column clip_l14_similarity_score --num_samples 500 \\
    --metadata_dir metadata --save_path m_flyt.npy
cp m_flyt.npy ~
"""
"""Files that a page takes from another page, or from a training of days."""


def make_home(home: Path, share_of_images: float, share_of_scores: float) -> Path:
    """Write a home folder.

    Args:
        home: a new folder.
        share_of_images: share of the pool's pairs that are in the tars.
        share_of_scores: share of the pool's rows that are in the score table.

    Returns:
        the folder `~/datacomp` in it.
    """
    checkout = home / "datacomp"
    shutil.copytree(HOST, checkout, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    if HOST == STAND_IN:
        for patch in map(carry_over, load_patches(REPOSITORY / "patches")):
            install(checkout, patches=[patch])
    script = REPOSITORY / "tests/open_clip_hook/shrunk_datacomp.py"
    (checkout / "train.py").write_text(_TRAIN.format(host=str(HOST), script=str(script)))
    for name in ("baselines_plugin", "benchmarks", "datacomp_flyt", "tests"):
        (checkout / name).symlink_to(REPOSITORY / name)
    config = REPOSITORY / "tests/open_clip_hook/model_configs/hook-tiny.json"
    shutil.copy(config, checkout)
    write_programs(home / "bin")
    _write_pool(checkout, share_of_images, share_of_scores)
    _write_other_data(checkout)
    subprocess.run(["bash", "-c", _PREPARE], cwd=checkout, env=environment(home), check=True)
    return checkout


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a shell in a home folder, whose programs run this Python."""
    return {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
    }


def write_programs(folder: Path) -> None:
    """Write programs `python`, `datacomp-flyt` and `torchrun` that run this Python."""
    programs = {
        "python": "",
        "datacomp-flyt": "-m datacomp_flyt.cli",
        "torchrun": "-m torch.distributed.run",
    }
    folder.mkdir()
    for name, words in programs.items():
        path = folder / name
        path.write_text(_PROGRAM.format(python=sys.executable, words=words))
        path.chmod(0o755)


def _write_pool(checkout: Path, share_of_images: float, share_of_scores: float) -> None:
    """Write the demo pool, without some of its images and without the scores of some rows."""
    shutil.copytree(DEMO / "pool/metadata", checkout / "metadata")
    rng = np.random.default_rng(16)
    (checkout / "shards").mkdir()
    available: list[str] = []
    for path in sorted((DEMO / "pool/shards").glob("*.tar")):
        kept = _copy_tar(path, checkout / "shards" / path.name, share_of_images, rng)
        stats = {"count": len(kept), "successes": len(kept)}
        (checkout / "shards" / f"{path.stem}_stats.json").write_text(json.dumps(stats))
        available += kept
    np.save(checkout / "available.npy", sorted_uids(available))
    uids = _uids(checkout / "metadata")
    scored = [uid for uid in uids if rng.random() < share_of_scores]
    columns = {name: rng.normal(size=len(scored)).astype("f4") for name in SCORE_COLUMNS}
    (checkout / "scores").mkdir()
    table = pa.table({"uid": scored, **columns})
    half = len(scored) // 2
    pq.write_table(table[:half], checkout / "scores/train-00000-of-00002.parquet")
    pq.write_table(table[half:], checkout / "scores/train-00001-of-00002.parquet")


def _copy_tar(source: Path, target: Path, share: float, rng: np.random.Generator) -> list[str]:
    """Copy about a share of the samples, and return their uids.

    webp is renamed, since pages expect jpg.
    """
    kept: dict[str, bool] = {}
    uids: list[str] = []
    with tarfile.open(source) as tar, tarfile.open(target, "w") as output:
        for member in tar:
            key = member.name.partition(".")[0]
            file = tar.extractfile(member)
            if file is None or not kept.setdefault(key, rng.random() < share):
                continue
            content = file.read()
            member.name = member.name.replace(".webp", ".jpg")
            output.addfile(member, io.BytesIO(content))
            if member.name.endswith(".json"):
                uids.append(json.loads(content)["uid"])
    return uids


def _write_other_data(checkout: Path) -> None:
    """Write targets, positives, subsets and weights that pages take from elsewhere."""
    (checkout / "imagenet").mkdir()
    for index in range(4):  # downstream has three
        source = DEMO / "downstream" / f"{index % 3:08d}.tar"
        target = checkout / "imagenet" / f"{index:08d}.tar"
        _copy_tar(source, target, 1.0, np.random.default_rng(0))
    (checkout / "downstream").mkdir()
    (checkout / "downstream/imagenet").symlink_to(DEMO / "downstream")
    for name in ("imagenet_npz", "cc12m_npz"):
        (checkout / name).mkdir()
        shutil.copy(DEMO / "downstream/embeddings.npz", checkout / name / "00000000.npz")
        uids = [hashlib.md5(b"%d" % row).hexdigest() for row in range(210)]
        columns = {"uid": uids, "clip_l14_similarity_score": np.linspace(0, 1, 210)}
        pq.write_table(pa.table(columns), checkout / name / "00000000.parquet")
    uids = _uids(checkout / "metadata")
    weights = pa.table({"uid": uids, "weight": np.linspace(0, 1, len(uids))})
    pq.write_table(weights, checkout / "w.parquet")


def _uids(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.parquet"))
    return [
        uid for file in files for uid in pq.read_table(file, columns=["uid"])["uid"].to_pylist()
    ]
