"""Measures the cost of the hook in a training step, and of loading a subset from original shards.

`python -m benchmarks.hook` prints one JSON line. A step is one of `train_one_epoch` in the
installed open_clip, on CPU, and its own log times it. The variants run in turns from equal
parameters: the stock trainer, the stock trainer again (for the noise of the measurement), and the
hook. Loaders are made by the trainer's `get_data`, and their batches are not used.

The pool is synthetic (see image_pool.py), in img2dataset's layout. This benchmark, and not
DataComp's resharder, writes the resharded copy in the same layout. The shuffle buffer is smaller
than open_clip's 5,000, so that a short run reaches the steady rate.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import multiprocessing
import os
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import torch

from benchmarks.image_pool import ImagePool, make_pool, reshard, write_table
from benchmarks.measure import print_result, say
from datacomp_flyt.exits import Parser
from datacomp_flyt.open_clip_hook import install_hook

# these modules have no types
trainer_data: Any = importlib.import_module("open_clip_train.data")
trainer_main: Any = importlib.import_module("open_clip_train.main")
distributed: Any = importlib.import_module("open_clip_train.distributed")
params: Any = importlib.import_module("open_clip_train.params")
train: Any = importlib.import_module("open_clip_train.train")

_SHUFFLE = 500  # samples in a loader's buffer
_LOADER_BATCH = 64
_WARM_STEPS = 2
Settings = dict[str, Any]


def model_config(layers: int, width: int, pixels: int, patch: int) -> dict[str, Any]:
    """Return a CLIP with equal towers; the text tower is open_clip's except for its size."""
    vision = {"image_size": pixels, "patch_size": patch, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "heads": width // 64}
    size = {"layers": layers, "width": width}
    return {"embed_dim": width, "vision_cfg": {**vision, **size}, "text_cfg": {**text, **size}}


def trainer_arguments(pool: ImagePool, model: str, batch: int, batches: int, workers: int) -> Any:
    """Return the flags parsed as in open_clip's main()."""
    flags = {
        "train-data": pool.urls,
        "train-num-samples": batch * batches,
        "dataset-type": "webdataset",
        "model": model,
        "batch-size": batch,
        "workers": workers,
        "log-every-n-steps": 1,
        "precision": "fp32",
        "device": "cpu",
    }
    args = params.parse_args(
        [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    )
    distributed.init_distributed_device(args)
    args.wandb = args.distill = False
    return args


def hooked(settings: Settings | None, args: Namespace, transform: Any) -> tuple[Any, Any]:
    """Return the trainer's data and its loss, with the hook installed if there are settings."""
    hook = None if settings is None else install_hook(**settings)
    try:
        tokenizer = open_clip.get_tokenizer("ViT-B-32")
        data = trainer_main.get_data(args, (transform, transform), tokenizer=tokenizer)
        return data, trainer_main.create_loss(args)
    finally:
        if hook is not None:
            hook.remove()


class StepTimes:
    """Records the seconds of each step, in place of the trainer's tensorboard."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.waiting: list[float] = []
        self.cpu: list[float] = []
        self.names: set[str] = set()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Record a number that the trainer logs."""
        self.names.add(name)
        if name == "train/batch_time":
            self.wall.append(value)
            self.cpu.append(time.process_time())
        elif name == "train/data_time":
            self.waiting.append(value)


def measure_steps(
    name: str, variants: dict[str, Settings | None], pool: ImagePool, flags: Namespace
) -> dict[str, Any]:
    """Return the median step of each variant, and its ratio to the stock step of the same round."""
    steps = flags.steps + _WARM_STEPS
    args = trainer_arguments(pool, name, flags.batch_size, steps, 1)
    torch.manual_seed(flags.seed)
    model, transform, _ = open_clip.create_model_and_transforms(name, output_dict=True)
    start = copy.deepcopy(model.state_dict())
    parts = {variant: hooked(setting, args, transform) for variant, setting in variants.items()}
    times_by_variant: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for repeat in range(flags.rounds):
        order = list(variants)
        order = order[repeat % len(order) :] + order[: repeat % len(order)]
        for variant in order:
            data, loss = parts[variant]
            model.load_state_dict(start)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            times = StepTimes()
            train.train_one_epoch(
                model, data, loss, repeat, optimizer, None, lambda _: None, None, args, times
            )
            if ("train/effective_examples" in times.names) == (variants[variant] is None):
                raise SystemExit(f"{variant}: the trainer used another loss than the measured one")
            times_by_variant[variant].append(
                {
                    "wall": median(times.wall[_WARM_STEPS:]),
                    "waiting": median(times.waiting[_WARM_STEPS:]),
                    "cpu": median(np.diff(times.cpu)[_WARM_STEPS - 1 :].tolist()),
                }
            )
            latest = times_by_variant[variant][-1]
            text = ", ".join(f"{kind} {value:.3f}" for kind, value in latest.items())
            say(f"{name}, round {repeat + 1} of {flags.rounds}: {variant}: {text} s a step")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch_size": flags.batch_size,
        **{
            variant: _step_summary(rounds, times_by_variant["stock"])
            for variant, rounds in times_by_variant.items()
        },
    }


def _step_summary(rounds: list[dict[str, float]], stock: list[dict[str, float]]) -> dict[str, Any]:
    def overheads(kind: str) -> list[float]:
        return [one[kind] / other[kind] - 1 for one, other in zip(rounds, stock, strict=True)]

    return {
        "seconds_per_step": median(one["wall"] for one in rounds),
        "of_it_waiting_for_data": median(one["waiting"] for one in rounds),
        "overhead": median(overheads("wall")),
        "overhead_of_this_process_cpu": median(overheads("cpu")),
        "overhead_all": overheads("wall"),
        "seconds_all": [one["wall"] for one in rounds],
    }


def work_of_workers() -> tuple[float, float] | None:
    """Return the bytes read by the loader's workers, and their CPU seconds; None without /proc."""
    read, ticks = 0, 0
    for child in multiprocessing.active_children():
        folder = Path(f"/proc/{child.pid}")
        try:
            read += int((folder / "io").read_text().split()[1])  # rchar
            times = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return None
        ticks += int(times[11]) + int(times[12])  # user and system time
    return read, ticks / os.sysconf("SC_CLK_TCK")


def loader_rate(
    pool: ImagePool, settings: Settings | None, workers: int, batches: int
) -> dict[str, float]:
    """Return examples and MB per second, and the workers' CPU, after filling the shuffle buffer."""
    warm = -(-_SHUFFLE // _LOADER_BATCH) * workers
    args = trainer_arguments(pool, "ViT-B-32", _LOADER_BATCH, warm + batches, workers)
    transform = open_clip.image_transform(224, is_train=True)
    data, _ = hooked(settings, args, transform)
    start, before = 0.0, None
    samples = batches * _LOADER_BATCH
    for num_batches, _ in enumerate(data["train"].dataloader, 1):
        if num_batches == warm:
            start, before = time.perf_counter(), work_of_workers()
        if num_batches == warm + batches:
            break
    seconds, after = time.perf_counter() - start, work_of_workers()
    result = {"samples_per_second": samples / seconds}
    if before is not None and after is not None:
        result["mb_read_per_second"] = (after[0] - before[0]) / seconds / 1e6
        result["worker_cpu_ms_per_sample"] = (after[1] - before[1]) / samples * 1e3
    return result


def measure_loaders(
    variants: dict[str, tuple[ImagePool, Settings | None]],
    reference: str,
    workers: int,
    flags: Namespace,
) -> dict[str, Any]:
    """Return medians of several runs in turns, and ratios to the reference of the same round."""
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for repeat in range(flags.loader_rounds):
        for variant, (pool, settings) in variants.items():
            runs[variant].append(loader_rate(pool, settings, workers, flags.loader_batches))
            rate = runs[variant][-1]["samples_per_second"]
            say(
                f"loader, {workers} workers, round {repeat + 1} of {flags.loader_rounds}: "
                f"{variant} {rate:.0f} samples/s"
            )
    base = [run["samples_per_second"] for run in runs[reference]]
    return {
        variant: {
            **{name: median(run[name] for run in repeats) for name in repeats[0]},
            "rate_over_reference": median(
                run["samples_per_second"] / other for run, other in zip(repeats, base, strict=True)
            ),
            "samples_per_second_all": [run["samples_per_second"] for run in repeats],
        }
        for variant, repeats in runs.items()
    }


def parse_flags() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--examples", type=int, default=20_000, help="examples in the pool")
    add("--shards", type=int, default=20)
    add("--pixels", type=int, default=256, help="width and height of an image")
    add("--table_rows", type=int, default=1_000_000, help="rows in the table of weights")
    add("--fraction", type=float, default=0.1, help="share of the pool in the subset")
    add("--batch_size", type=int, default=256, help="pairs in a step")
    add("--steps", type=int, default=8, help="steps of a variant in each round")
    add("--rounds", type=int, default=7, help="rounds of steps")
    add("--loader_batches", type=int, default=32, help=f"batches of {_LOADER_BATCH} in each round")
    add("--loader_rounds", type=int, default=3)
    add("--only", choices=["steps", "loaders"], help="measure only these (default: both)")
    add("--seed", type=int, default=0)
    add(
        "--work_dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "datacomp_flyt_benchmarks" / "hook",
        help="folder of the pool, which later runs use again (default: %(default)s)",
    )
    return parser.parse_args()


def results_of_steps(
    pool: ImagePool, table: Path, model_dir: Path, flags: Namespace
) -> dict[str, Any]:
    """Measure the steps of two models, whose configurations are written in `model_dir`."""
    configs = {"vit_3x128": (3, 128, 32, 8), "vit_4x256": (4, 256, 64, 16)}
    for name, sizes in configs.items():
        model_dir.mkdir(exist_ok=True)
        (model_dir / f"{name}.json").write_text(json.dumps(model_config(*sizes)))
    open_clip.add_model_config(model_dir)
    variants: dict[str, Settings | None] = {
        "stock": None,
        "stock_again": None,
        "weights": {"weights": table},
        "weights_distinct_in_batch": {"weights": table, "distinct_in_batch": True},
        "scores": {"scores": table},
    }
    return {name: measure_steps(name, variants, pool, flags) for name in configs}


def results_of_loaders(pool: ImagePool, table: Path, flags: Namespace) -> dict[str, Any]:
    """Measure loaders with one worker, with and without weights."""
    variants: dict[str, tuple[ImagePool, Settings | None]] = {
        "stock": (pool, None),
        "stock_again": (pool, None),
        "weights": (pool, {"weights": table}),
        "weights_distinct_in_batch": (pool, {"weights": table, "distinct_in_batch": True}),
    }
    return measure_loaders(variants, "stock", 1, flags)


def results_of_subset(
    pool: ImagePool, resharded: ImagePool, subset_file: Path, flags: Namespace
) -> dict[str, Any]:
    """Measure loaders on a resharded copy, and the hook on the original shards."""
    reference = "stock_on_resharded_copy"
    variants: dict[str, tuple[ImagePool, Settings | None]] = {
        reference: (resharded, None),
        "hook_on_original_shards": (pool, {"subset": subset_file}),
        "stock_on_resharded_copy_again": (resharded, None),
    }
    return {
        "fraction": flags.fraction,
        "bytes_on_disk": {"original": pool.bytes_on_disk, "copy": resharded.bytes_on_disk},
        "bytes_on_disk_beyond_the_original": {
            reference: resharded.bytes_on_disk,
            "hook_on_original_shards": subset_file.stat().st_size,
        },
        **{
            f"workers_{workers}": measure_loaders(variants, reference, workers, flags)
            for workers in (1, 2)
        },
    }


def main() -> None:
    """Make the pool, measure, and print the results."""
    flags = parse_flags()
    work = flags.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(1)  # the loader's worker uses the other core

    say(f"making a pool in {work}")
    pool = make_pool(work / "pool", flags.examples, flags.shards, flags.pixels, flags.seed)
    table, subset_file = work / "table.parquet", work / "subset.npy"
    write_table(table, "value", pool.uids, flags.table_rows - flags.examples, flags.seed + 1)
    chosen = np.random.default_rng(flags.seed + 2).choice(
        pool.uids, round(flags.fraction * flags.examples), replace=False
    )
    np.save(subset_file, np.sort(chosen))
    resharded = reshard(pool, chosen, work / "resharded", 2)

    result: dict[str, Any] = {"open_clip": open_clip.__version__, "examples": flags.examples}
    if flags.only != "loaders":
        result["steps"] = results_of_steps(pool, table, work / "models", flags)
    if flags.only != "steps":
        trainer_data._SAMPLE_SHUFFLE_SIZE = _SHUFFLE
        trainer_data._SAMPLE_SHUFFLE_INITIAL = _SHUFFLE // 2
        result["loader_alone"] = results_of_loaders(pool, table, flags)
        result["subset"] = results_of_subset(pool, resharded, subset_file, flags)
    print_result("hook", result)


if __name__ == "__main__":
    main()
