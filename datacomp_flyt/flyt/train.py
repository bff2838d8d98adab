"""Learn a scoring model: `datacomp-flyt train`, or `torchrun -m datacomp_flyt.flyt.train`."""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main, running

# It imports this module, runs its `main` and exits: before the imports below, which take time,
# so that Ctrl-C is handled.
if __name__ == "__main__":
    run_main("datacomp_flyt.flyt.train")

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from datacomp_flyt.clip.models import ClipModel, load_clip_model
from datacomp_flyt.distributed.collectives import rank_and_world_size
from datacomp_flyt.distributed.torchrun_ranks import torchrun_environment
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.flyt.algorithm import Algorithm
from datacomp_flyt.flyt.algorithm_config import AlgorithmConfig
from datacomp_flyt.flyt.checkpoint import NAME
from datacomp_flyt.flyt.data import downstream_loader, upstream_loader
from datacomp_flyt.flyt.downstream_tasks import DownstreamTask, open_tasks
from datacomp_flyt.flyt.flags import add_arguments
from datacomp_flyt.flyt.prompts import Prompts
from datacomp_flyt.flyt.scoring_setup import check_same_inputs, make_scoring
from datacomp_flyt.flyt.stream_settings import StreamSettings
from datacomp_flyt.flyt.trainer import (
    EXTRACTOR,
    REFERENCE_MODEL,
    SCORING_MODEL,
    EpochLoaders,
    RunConfig,
    run_epochs,
)
from datacomp_flyt.flyt.training_config import TrainingConfig, with_options_of
from datacomp_flyt.flyt.training_log import METRICS
from datacomp_flyt.flyt.uid_features import UidFeatures
from datacomp_flyt.installation import require_training
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.tars.samples import require_webdataset
from datacomp_flyt.tars.shards import list_shards


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Attributes:
        scoring_model: path of the scoring model, which `m_flyt` or `e_flyt` scores a pool with.
        reference_model: path of the reference model, a checkpoint for open_clip.
        extractor: path of the feature extractor; None unless it was trained.
        metrics: path of the log, one line of JSON for each logged step.
        steps: number of steps done, including those before `resume`.
        upstream_loss: L_up of the last step; None if all steps had been done before.
        downstream_loss: L_down of the last step; None if all steps had been done before.
    """

    scoring_model: Path
    reference_model: Path
    extractor: Path | None
    metrics: Path
    steps: int
    upstream_loss: float | None
    downstream_loss: float | None


def train_with(config: TrainingConfig) -> TrainingResult:
    """Train with a config; see `train`."""
    require_training("datacomp-flyt train")
    require_webdataset()
    device = _start_processes(config.device)
    try:
        return _train(config, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@with_options_of(TrainingConfig)
def train(config: TrainingConfig) -> TrainingResult:
    """Learn a scoring model, as in FLYT's Algorithm 1.

    Under `torchrun`, each process calls this with the same arguments, and rank 0 writes the files.
    All arguments are keyword-only; those that are left out have the value of the preset, or the
    default.

    Returns:
        Paths of the models and of the log, and the last losses; see `TrainingResult`.

    Raises:
        InputError: an argument or a file is wrong; the message names the flag of
            `datacomp-flyt train`.
    """
    return train_with(config)


def _train(config: TrainingConfig, device: torch.device) -> TrainingResult:
    rank, world_size = rank_and_world_size()
    _check_division(config, world_size)
    output_dir = _open_output(config, rank)
    with contextlib.nullcontext() if rank else lock_outputs(output_dir):
        return _train_into(output_dir, config, device)


def _train_into(output_dir: Path, config: TrainingConfig, device: torch.device) -> TrainingResult:
    tasks = open_tasks(
        str(config.downstream_dir),
        config.downstream_tasks,
        None if config.evaluation_dir is None else str(config.evaluation_dir),
    )
    shards = list_shards(str(config.train_data), "--train_data", commands=True)
    reference = load_clip_model(
        str(config.reference_model),
        None if config.reference_init is None else str(config.reference_init),
        "reference",
        seed=config.seed,
    )
    scoring = make_scoring(config)
    if scoring.extractor is not None:
        check_same_inputs(config, reference.model, scoring.extractor)
    loaders = _Loaders(config, shards, tasks, reference, scoring.table)
    algorithm = Algorithm(
        _algorithm_config(config),
        reference.model.to(device),
        scoring.model.to(device),
        None if scoring.extractor is None else scoring.extractor.to(device),
        Prompts(tasks, reference.tokenize, config.seed),
    )
    run = RunConfig(output_dir, config.checkpoint_every, config.log_every, config.report_to)
    metrics = run_epochs(algorithm, loaders, run, config.decisive())
    return TrainingResult(
        scoring_model=output_dir / SCORING_MODEL,
        reference_model=output_dir / REFERENCE_MODEL,
        extractor=output_dir / EXTRACTOR if config.train_extractor else None,
        metrics=output_dir / METRICS,
        steps=config.num_steps,
        upstream_loss=metrics.get("upstream_loss"),
        downstream_loss=metrics.get("downstream_loss"),
    )


@dataclass(frozen=True)
class _Loaders:
    """Makes the loaders of each epoch."""

    config: TrainingConfig
    shards: Sequence[str]
    tasks: Sequence[DownstreamTask]
    reference: ClipModel
    features: UidFeatures | None

    def __call__(self, epoch: int) -> EpochLoaders:
        config = self.config
        captions_from_tars = config.downstream_loss == "clip" and config.captions == "txt"
        return (
            upstream_loader(
                self.shards,
                self.reference.tokenize,
                self._settings(epoch, config.upstream_batch_size, config.upstream_shuffle),
                self.features,
                f"--train_data {config.train_data}",
            ),
            downstream_loader(
                self.tasks,
                self._settings(epoch, config.downstream_batch_size, config.downstream_shuffle),
                config.task_weights,
                self.reference.tokenize if captions_from_tars else None,
                name=f"--downstream_dir {config.downstream_dir}",
            ),
        )

    def _settings(self, epoch: int, batch_size: int, shuffle_buffer: int) -> StreamSettings:
        rank, world_size = rank_and_world_size()
        return StreamSettings(
            transform=self.reference.transform,
            batch_size=batch_size,
            num_streams=self.config.num_streams,
            seed=self.config.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            num_workers=self.config.num_workers,
            shuffle_buffer=(shuffle_buffer, max(shuffle_buffer // 5, 1)),
            max_bad_share=self.config.max_bad_share,
        )


def _algorithm_config(config: TrainingConfig) -> AlgorithmConfig:
    names = AlgorithmConfig.__dataclass_fields__
    values = {name: getattr(config, name) for name in names if name != "betas"}
    return AlgorithmConfig(**values, betas=(config.beta1, config.beta2))


def _check_division(config: TrainingConfig, world_size: int) -> None:
    for name in ("upstream_batch_size", "downstream_batch_size"):
        size = getattr(config, name)
        if size % world_size:
            raise InputError(
                f"--{name} {size} is not divisible by {world_size} processes: give a multiple"
            )
        if size % config.num_streams:
            raise InputError(
                f"--{name} {size} is not divisible by --num_streams {config.num_streams}: give a "
                "divisor of both batch sizes"
            )
    if config.num_streams % world_size:
        raise InputError(
            f"--num_streams {config.num_streams} is not divisible by {world_size} processes: give "
            "a multiple"
        )


def _open_output(config: TrainingConfig, rank: int) -> Path:
    path = Path(config.output_dir)
    if path.exists() and not path.is_dir():
        raise InputError(f"--output_dir {path} is a file: give a folder")
    if (path / NAME).exists() and not config.resume:
        raise InputError(
            f"--output_dir {path} holds a checkpoint: go on from it with --resume, or give another"
        )
    written = (NAME, METRICS, SCORING_MODEL, REFERENCE_MODEL, EXTRACTOR)
    check_outputs([Output("--output_dir", path, written)], vars(config))
    if rank == 0:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_dir {path} cannot be made ({error.strerror})") from None
    return path


def _start_processes(device: str | None) -> torch.device:
    """Join the other ranks, if torchrun started this process, and return the device to train on."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = torchrun_environment()
    if environment is not None:
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.startswith("cuda") else "gloo",
            store=environment.rendezvous("train"),
            rank=environment.rank,
            world_size=environment.world_size,
        )
    try:
        usable_device = torch.device(device)
        torch.zeros(1, device=usable_device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device} cannot be used ({str(error).splitlines()[0]}): give cuda or cpu"
        ) from None
    return usable_device


def main(argv: Sequence[str] | None = None) -> None:
    """Run `torchrun --nproc_per_node 8 -m datacomp_flyt.flyt.train --preset m_flyt_base ...`."""
    parser = Parser(description=__doc__)
    add_arguments(parser)
    with running("datacomp_flyt.flyt.train") as command:
        config = TrainingConfig(**vars(parser.parse_args(argv)))
        command.flags = vars(config)
        train_with(config)
        raise SystemExit(0)
