"""Training by DataComp's train.py on half of the demo pool."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.open_clip_hook.running import (
    SHARDS,
    SHRUNK_DATACOMP,
    TRAIN_CLIP,
    pool_concepts,
    python,
    write_repeats,
)


class Half:
    """Files that select half of the emoji in the demo pool: weights of 1 and 0, and a subset."""

    def __init__(self, folder: Path) -> None:
        concepts = pool_concepts()
        kept = set(sorted(set(concepts.values()))[::2])
        uids = [uid for uid, concept in concepts.items() if concept in kept]
        self.uids = folder / "uids.txt"
        self.uids.write_text("\n".join(uids))
        weights = [float(concept in kept) for concept in concepts.values()]
        table = pa.table({"uid": list(concepts), "weight": weights})
        pq.write_table(table, folder / "weights.parquet")
        repeats = {uid: 1 + row % 3 for row, uid in enumerate(uids)}
        write_repeats(folder / "subset.npy", repeats)
        # with weights, the subset may have pairs of weight 0, which must not be learned
        some_others = [uid for uid in concepts if concepts[uid] not in kept][::2]
        write_repeats(folder / "more.npy", repeats | dict.fromkeys(some_others, 1))
        self.folder = folder

    def flags(self, hook: tuple[str, ...]) -> list[str]:
        words = []
        if "weights" in hook:
            words += ["--weights", str(self.folder / "weights.parquet")]
        if "subset" in hook:
            name = "more.npy" if "weights" in hook else "subset.npy"
            words += ["--subset", str(self.folder / name)]
        return words + (["--distinct_in_batch"] if "distinct" in hook else [])


def train(
    flags: list[str],
    env: dict[str, str],
    output: Path,
    data: Path = SHARDS,
    samples: int = 4_096,
    seed: int = 0,
) -> Path:
    """Run the train.py of DATACOMP_DIR, with the hook if it has flags; return the checkpoint."""
    words = ["--scale", "small", "--data_dir", data, "--output_dir", output, "--seed", seed]
    words += ["--precision", "fp32", "--workers", 1, "--num_checkpoints", 2]
    env = {**env, "SHRUNK_SCALE": json.dumps({"train_num_samples": samples, "warmup": 10})}
    hook = [*TRAIN_CLIP, *flags, "--"] if flags else []
    output_was_there = output.exists()
    ended = python(*map(str, [*hook, SHRUNK_DATACOMP, *words]), env=env)
    if "--distinct_in_batch" in flags and not output_was_there:
        assert "distinct_in_batch: " in ended.stderr
    folder = output / "small_scale" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"epoch_2.pt", "epoch_latest.pt"}
    return folder / "epoch_latest.pt"
