"""Small training runs: their data, a tiny CLIP model, and functions that run them."""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

from datacomp_flyt.cli import main
from datacomp_flyt.clip.models import ClipModel
from datacomp_flyt.flyt import train as trainer
from datacomp_flyt.flyt.flags import add_arguments
from datacomp_flyt.flyt.scoring_setup import Scoring
from datacomp_flyt.flyt.training_config import TrainingConfig
from tests.conftest import write_parquet
from tests.flyt.tars import uid_of, write_tar

SMALL_MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,  # the size of open_clip's tokenizer
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}
COLUMNS = ("clip_b32_similarity_score", "clip_l14_similarity_score")
ARRAYS = ("b32_img", "b32_txt")
WIDTH = 6  # columns of each array
CLASSES = {"pets": ("cat", "dog", "owl"), "cars": ("bus", "van")}
PAIRS, ROWS = 64, 16  # upstream examples, and examples of a shard


@dataclass(frozen=True)
class Data:
    """Folders of a pool and of two downstream tasks, and a model configuration."""

    folder: Path
    model: Path

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def downstream(self) -> Path:
        return self.folder / "downstream"

    def flags(self, output: Path, features: str = "scores") -> dict[str, Any]:
        """Return flags of a run of six steps and three epochs, by name."""
        return {
            "preset": "tiny",
            "train_data": self.shards,
            "metadata_dir": self.metadata,
            "downstream_dir": self.downstream,
            "downstream_tasks": ["pets"],
            "reference_model": self.model,
            "extractor_model": self.model,
            "features": features,
            "score_columns": list(COLUMNS),
            "upstream_batch_size": 8,
            "downstream_batch_size": 8,
            "num_steps": 6,
            "checkpoint_every": 2,
            "upstream_shuffle": 16,
            "downstream_shuffle": 8,
            "warmup": 2,
            "log_every": 1,
            "device": "cpu",
            "output_dir": output,
        }


def noise_image(seed: int, side: int = 40) -> bytes:
    """Make a JPEG of random colours."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (5, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(file, "JPEG")
    return file.getvalue()


def make_data(folder: Path) -> Data:
    words = np.random.default_rng(0).choice(
        ["red", "blue", "big", "small", "cat", "dog", "bus", "tree", "sea", "hat"], (PAIRS, 4)
    )
    pairs = [
        {
            "jpg": noise_image(index),
            "txt": " ".join(words[index]).encode(),
            "json": json.dumps({"uid": uid_of(index)}).encode(),
        }
        for index in range(PAIRS)
    ]
    for shard in range(PAIRS // ROWS):
        rows = pairs[shard * ROWS : (shard + 1) * ROWS]
        write_tar(folder / "shards" / f"{shard:08d}.tar", rows)
    write_metadata(folder / "metadata")
    for task, names in CLASSES.items():
        write_labels(folder / "downstream" / task, names)
    path = folder / "flyt-test-small.json"
    path.write_text(json.dumps(SMALL_MODEL))
    return Data(folder, path)


def write_metadata(folder: Path) -> None:
    """Write two shards of metadata with DataComp's CLIP scores and embeddings."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for part in range(2):
        uids = [uid_of(index) for index in range(part, PAIRS, 2)]
        means = dict(zip(COLUMNS, (0.3, 0.2), strict=True))
        scores = {name: rng.normal(mean, 0.05, len(uids)) for name, mean in means.items()}
        write_parquet(folder / f"{part:032x}.parquet", {"uid": uids, **scores})
        arrays = {name: rng.normal(size=(len(uids), WIDTH)) for name in ARRAYS}
        stored = {name: array.astype(np.float16) for name, array in arrays.items()}
        np.savez(folder / f"{part:032x}.npz", **stored)


def write_labels(
    folder: Path,
    class_names: Sequence[str],
    labels: Sequence[int] | None = None,
    rows: int = 24,
) -> None:
    """Write a downstream task of two shards."""
    for shard in range(2):
        samples = [
            {
                "jpg": noise_image(1000 + index),
                "cls": str(index % len(class_names) if labels is None else labels[index]).encode(),
                "txt": f"picture of {class_names[index % len(class_names)]}".encode(),
            }
            for index in range(shard * rows // 2, (shard + 1) * rows // 2)
        ]
        write_tar(folder / f"{shard:05d}.tar", samples)
    (folder / "classnames.txt").write_text("\n".join(class_names) + "\n")
    path = folder / "zeroshot_classification_templates.txt"
    path.write_text("a photo of a {c}.\na drawing of a {c}.\n")


def argv(flags: Mapping[str, Any]) -> list[str]:
    """Make a command line: True becomes a flag without a value, False and None no flag."""
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        values = value if isinstance(value, (list, tuple)) else () if value is True else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


def parse(*words: str) -> TrainingConfig:
    """Parse flags, with the required ones beside the preset."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    required = ["--train_data", "t", "--downstream_dir", "d", "--output_dir", "o"]
    return TrainingConfig(**vars(parser.parse_args([*required, *words])))


def train(flags: Mapping[str, Any]) -> int:
    """Run `datacomp-flyt train` in this process, and return its exit code."""
    torch.set_num_threads(1)  # as in other processes, for equal results
    return exit_code(lambda: main(["train", *argv(flags)]))


def exit_code(function: Callable[[], object]) -> int:
    try:
        function()
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("the function returned without SystemExit")


def tensors_of(output: Path) -> dict[str, Tensor]:
    """Read the scoring model, the reference model and the trained extractor of a run."""
    actual = {
        f"scoring/{name}": torch.from_numpy(value)
        for name, value in load_file(output / "scoring_model.safetensors").items()
    }
    for name in ("reference_model", "extractor"):
        if (output / f"{name}.pt").exists():
            state = torch.load(output / f"{name}.pt", weights_only=True)
            actual |= {f"{name}/{key}": value for key, value in state.items()}
    return actual


def bytes_of(output: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors_of(output).items()}


def metrics_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Call a function in a new process, which is forked from one that has imported the trainer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.flyt.runs", "datacomp_flyt.flyt.train"])
    process: BaseProcess = context.Process(target=function, args=arguments)
    process.start()
    return process


def train_quietly(flags: Mapping[str, Any], log: Path | None = None) -> None:
    """Train and end this process; the output goes to a file, or is discarded."""
    with open(os.devnull if log is None else log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    raise SystemExit(train(flags))


def train_in_double(flags: Mapping[str, Any], log: Path | None = None) -> None:
    """Train like `train_quietly`, in float64."""
    load, make = trainer.load_clip_model, trainer.make_scoring

    def load_double(*arguments: Any, **options: Any) -> ClipModel:
        clip = load(*arguments, **options)
        clip.model.double()
        return replace(clip, transform=lambda image, f=clip.transform: f(image).double())

    def make_double(config: TrainingConfig) -> Scoring:
        scoring = make(config)
        scoring.model.double()
        assert scoring.table is not None
        values: Any = scoring.table.values.astype(np.float64)
        return replace(scoring, table=replace(scoring.table, values=values))

    trainer.load_clip_model, trainer.make_scoring = load_double, make_double
    train_quietly(flags, log)


def train_as_rank(
    flags: Mapping[str, Any], in_double: bool, rank: int, world_size: int, port: int
) -> None:
    """Train in this process as a rank of torchrun, with the log in a file."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    log = rank_log(flags["output_dir"], rank)
    (train_in_double if in_double else train_quietly)(flags, log)


def rank_log(output: Path, rank: int) -> Path:
    return output.with_name(f"{output.name}.rank{rank}.txt")


def train_on_ranks(
    flags: Mapping[str, Any],
    world_size: int,
    in_double: bool = False,
    kill_when: Callable[[], bool] | None = None,
) -> list[int | None]:
    """Train in several processes of this machine, and return their exit codes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks = [
        start(train_as_rank, flags, in_double, rank, world_size, port) for rank in range(world_size)
    ]
    while kill_when is not None and not kill_when() and ranks[0].exitcode is None:
        time.sleep(0.002)
    for process in ranks:
        if kill_when is not None:
            process.kill()
        process.join(120)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes
