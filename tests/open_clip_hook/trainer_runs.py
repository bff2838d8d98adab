"""Trainings with open_clip's own trainer in subprocesses, on a pool of noise."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.flyt.tars import uid_of, write_tar
from tests.open_clip_hook.seeded_trainer import digest

DRIVER = Path(__file__).parent / "seeded_trainer.py"
MODEL = "hook-tiny"
EXAMPLES = 128
SHARDS = 4
FLAGS = {
    "--model": MODEL,
    "--dataset-type": "webdataset",
    "--train-num-samples": str(EXAMPLES),
    "--batch-size": "8",
    "--epochs": "1",
    "--workers": "1",
    "--lr": "1e-3",
    "--warmup": "2",
    "--seed": "3",
    "--precision": "fp32",
    "--log-every-n-steps": "1",
}
RELEASES = {  # environment variable, and the folder in it to import from
    "2.16.1": ("OPEN_CLIP_2_16", ""),
    "head": ("OPEN_CLIP_DIR", "src"),
}
SECONDS = 300  # for the trainings of a process

State = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        hook: arguments of `install_hook`; None for the stock trainer.
        flags: more flags of the trainer.
    """

    hook: Mapping[str, Any] | None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The result of a training.

    Attributes:
        first, final: state dicts before and after.
        batches: numbers of examples by rank, epoch, batch and row, as the trainer got them.
        log: the log of rank 0.
    """

    first: State
    final: State
    batches: list[list[list[list[int]]]]
    log: str

    def rows(self, accum_freq: int = 1) -> list[list[int]]:
        """Return the examples of each step, over all ranks and micro-batches."""
        steps: list[list[int]] = []
        for epoch in range(len(self.batches[0])):
            num_steps = len(self.batches[0][epoch]) // accum_freq
            steps += [
                [
                    row
                    for rank in self.batches
                    for batch in rank[epoch][step * accum_freq : (step + 1) * accum_freq]
                    for row in batch
                ]
                for step in range(num_steps)
            ]
        return steps


class Noise:
    """Examples 0 to 127 in four tars: a caption and an image of noise each."""

    def __init__(self, folder: Path, broken: Collection[int] = ()) -> None:
        """Write the tars; examples in `broken` get a damaged image."""
        self.folder = folder
        self.images, self.texts = example_tensors()
        for shard in range(SHARDS):
            numbers = range(shard * EXAMPLES // SHARDS, (shard + 1) * EXAMPLES // SHARDS)
            samples = [
                {
                    "png": b"no image" if number in broken else png(number),
                    "txt": caption(number).encode(),
                    "json": json.dumps({"uid": uid_of(number)}).encode(),
                }
                for number in numbers
            ]
            write_tar(folder / f"{shard:08d}.tar", samples)

    @property
    def urls(self) -> str:
        return f"{self.folder}/{{00000000..{SHARDS - 1:08d}}}.tar"


def caption(number: int) -> str:
    return f"caption number {number}"


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tiny_model() -> nn.Module:
    open_clip.add_model_config(DRIVER.parent / "model_configs")
    model: nn.Module = open_clip.create_model(MODEL, output_dict=True)
    return model


def example_tensors() -> tuple[Tensor, Tensor]:
    """Return images [128, 3, 32, 32] and tokens [128, L], by the evaluation transform."""
    tiny_model()
    *_, transform = open_clip.create_model_and_transforms(MODEL)
    images = [transform(Image.open(io.BytesIO(png(number)))) for number in range(EXAMPLES)]
    texts = open_clip.get_tokenizer(MODEL)([caption(number) for number in range(EXAMPLES)])
    return torch.stack(images), texts


def environment(version: str) -> dict[str, str]:
    """Return the environment of a process with this release of open_clip; skip if missing."""
    settings = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if version in RELEASES:
        variable, part = RELEASES[version]
        if not os.environ.get(variable):
            pytest.skip(f"open_clip {version}: {variable} names no folder that has it")
        settings["PYTHONPATH"] = os.path.abspath(os.path.join(os.environ[variable], part))
    return {**os.environ, **settings}


def train(
    folder: Path,
    noise: Noise,
    runs: Mapping[str, Run],
    version: str = "installed",
    ranks: int = 1,
    flags: Sequence[str] = (),
) -> dict[str, Outcome]:
    """Run trainings one after the other in the same processes; `flags` go to all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(ranks):
        variables = environment(version)
        if ranks > 1:
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
            variables |= {name: str(number) for name, number in world.items()}
        with open(folder / f"output.{rank}", "w") as output:
            process = subprocess.Popen(
                _command(folder, noise, runs, ranks, rank, flags),
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
    try:
        codes = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    output = [(folder / f"output.{rank}").read_text() for rank in range(ranks)]
    assert codes == [0] * ranks, "\n".join(output)[-5000:]
    return {name: _outcome(folder, noise, name, ranks) for name in runs}


def _command(
    folder: Path, noise: Noise, runs: Mapping[str, Run], ranks: int, rank: int, flags: Sequence[str]
) -> list[str]:
    words = [sys.executable, str(DRIVER)]
    common = [word for pair in FLAGS.items() for word in pair] + list(flags)
    for name, run in runs.items():
        words += [json.dumps(run.hook), *common, *run.flags, "--train-data", noise.urls]
        words += ["--logs", str(folder), "--name", name, "--dump", str(folder)]
        if ranks > 1:  # a file, not a port that another process might take
            url = f"file://{folder}/{name}.store?rank={rank}&world_size={ranks}"
            words += ["--dist-backend", "gloo", "--dist-url", url]
        words.append("then")
    return words[:-1]


def _outcome(folder: Path, noise: Noise, name: str, ranks: int) -> Outcome:
    numbers = {
        digest(image, text): number
        for number, (image, text) in enumerate(zip(noise.images, noise.texts, strict=True))
    }
    assert len(numbers) == EXAMPLES
    batches = [
        json.loads((folder / f"{name}.{rank}.batches.json").read_text()) for rank in range(ranks)
    ]
    return Outcome(
        load_file(folder / f"{name}.0.first.safetensors"),
        load_file(folder / f"{name}.0.final.safetensors"),
        [[[[numbers[row] for row in b] for b in epoch] for epoch in rank] for rank in batches],
        (folder / name / "out.log").read_text(),
    )


def are_equal(a: State, b: State) -> bool:
    """Return whether all parameters are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def difference(a: State, b: State) -> float:
    """Return the largest absolute difference over all parameters."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
