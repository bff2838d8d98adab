"""The long commands, on small inputs, so that each takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datacomp_flyt.demo import POOL
from tests.conftest import make_pool, write_files
from tests.faults.killing import Command

CLI = ("-m", "datacomp_flyt.cli")
ROWS = 60_000


def select(folder: Path) -> Command:
    """Select in memory, in rounds of G, with all three outputs."""
    return Command("select", ("-m", "baselines_plugin", *_selection(folder)))


def select_in_files(folder: Path) -> Command:
    """Select with `--work_dir`, in several buckets, with two workers."""
    words = ("-m", "tests.faults.small_slices", *_selection(folder), "--work_dir", "work")
    return Command("select --work_dir", words, growing=("work/uids.npy", "work/column_*.npy"))


def _selection(folder: Path) -> tuple[str, ...]:
    if not (folder / "scores").exists():
        pool = make_pool(ROWS)
        write_files(folder / "metadata", pool.metadata, 3)
        write_files(folder / "scores", pool.scores, 4, seed=1)
    return (
        "--name", "m_flyt", "--scoring_model", "paper", "--metadata_dir", str(folder / "metadata"),
        "--scores_dir", str(folder / "scores"), "--num_samples", str(2 * ROWS),
        "--repetition_penalty", "0.4", "--sampling_batch_size", "1000", "--num_workers", "2",
        "--save_path", "out/subset.npy", "--save_scores", "out/scores.parquet",
        "--save_scoring_model", "out/model.safetensors",
    )  # fmt: skip


def score(folder: Path) -> Command:
    """Run a scorer that needs one shard at a time."""
    flags = ("--num_partitions", "60", "--num_workers", "2")
    return Command("score", _score("neg_clip_loss", *flags))


def score_in_passes(folder: Path) -> Command:
    """Run a scorer that needs a statistic of the whole pool."""
    flags = ("--num_rounds", "60", "--num_workers", "2")
    return Command("score in passes", _score("norm_sim_d", *flags))


def _score(scorer: str, *flags: str) -> tuple[str, ...]:
    pool = ("--metadata_dir", str(POOL / "metadata"))
    return (*CLI, "score", "--scorer", scorer, "--scores_dir", "scores", *pool, *flags)


def embed(folder: Path) -> Command:
    """Embed four tars with two tiny encoders."""
    import torch

    from tests.flyt.runs import make_data
    from tests.scorers.base.image_tars import small_weights

    data = make_data(folder / "data")
    torch.save(small_weights(data.model), folder / "weights.pt")
    encoders = (f"{name}={data.model}:{folder / 'weights.pt'}" for name in ("b32", "l14"))
    paths = ("--shards_dir", str(data.shards), "--metadata_dir", "metadata", "--num_workers", "2")
    words = (word for encoder in encoders for word in ("--encoder", encoder))
    return Command("embed", (*CLI, "embed", *paths, *words))


def train(folder: Path) -> Command:
    """Train M-FLYT."""
    return Command("train", _train(folder, "scores"), *_TRAINED)


def train_e_flyt(folder: Path) -> Command:
    """Train E-FLYT on embeddings."""
    return Command("train, E-FLYT", _train(folder, "embeddings"), *_TRAINED)


_TRAINED: tuple[tuple[str, ...], tuple[str, ...]] = ((), ("out/metrics.jsonl", "out/checkpoint.pt"))


def _train(folder: Path, features: str) -> tuple[str, ...]:
    from tests.flyt.runs import argv, make_data

    flags = make_data(folder / "data").flags(Path("out"), features)
    settings = {"num_steps": 16, "checkpoint_every": 4, "resume": True}
    return (*CLI, "train", *argv({**flags, **settings}))


def train_clip(folder: Path) -> Command:
    """Run open_clip's trainer on a weighted pool, with seeded batches."""
    from datacomp_flyt.demo.noisy_pool import make_pairs, write_pool

    write_pool(folder, make_pairs(64, 0.4, 0), "kills")
    table = pq.read_table(folder / "kinds.parquet")
    weights = np.random.default_rng(0).lognormal(size=len(table))
    pq.write_table(pa.table({"uid": table["uid"], "weight": weights}), folder / "w.parquet")
    hook = ("--weights", str(folder / "w.parquet"), "--shuffle_seed", "1", "--distinct_in_batch")
    trainer = (
        *_TRAINER, "--epochs", "3", "--train-data", str(folder / "shards" / "00000000.tar"),
        "--train-num-samples", "64", "--save-most-recent", "--resume", "latest",
        "--logs", "runs", "--name", "model",
    )  # fmt: skip
    config = ("--model_config", "flyt-demo")  # a model of the demo
    words = (*CLI, "train_clip", *config, *hook, "--", *trainer)
    return Command("train_clip", words, _LOGS, ("*/epoch_latest.pt",), _OPEN_CLIPS)


def self_filter(folder: Path) -> Command:
    """Run a round of self-filtering with open_clip's trainer."""
    from datacomp_flyt.demo.noisy_pool import make_pairs, write_pool

    write_pool(folder, make_pairs(64, 0.4, 0), "kills")
    flags = ("--shards_dir", str(folder / "shards"), "--out", "run", "--rounds", "1")
    words = (*CLI, "self_filter", *flags, "--samples_per_round", "64", "--no_reports")
    growing = ("*/epoch_latest.pt", "run/*diagnostics.json")
    trainer = (*_TRAINER, "--epochs", "2")
    return Command("self_filter", (*words, "--", *trainer), _LOGS, growing, _OPEN_CLIPS)


_LOGS = ("*.log", "*/params.txt")
_OPEN_CLIPS = (*_LOGS, "*/epoch_[0-9]*.pt")  # open_clip writes these in place

_TRAINER = (
    "-m", "open_clip_train.main", "--model", "flyt-demo", "--dataset-type", "webdataset",
    "--dataset-resampled", "--batch-size", "16", "--warmup", "2", "--lr", "3e-3",
    "--workers", "1", "--precision", "fp32", "--seed", "3",
)  # fmt: skip

COMMANDS: dict[str, Callable[[Path], Command]] = {
    "select": select,
    "select_in_files": select_in_files,
    "score": score,
    "score_in_passes": score_in_passes,
    "embed": embed,
    "train": train,
    "train_e_flyt": train_e_flyt,
    "train_clip": train_clip,
    "self_filter": self_filter,
}
"""Functions that write the inputs of a command into a folder and return the command."""
