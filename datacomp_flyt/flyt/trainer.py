"""The loop around Algorithm 1: batches, checkpoints, log, results.

An epoch is as many steps as lie between two checkpoints. Its data depends on (seed, epoch) alone,
so a run that was killed goes on from its last checkpoint with the batches it would have seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from datacomp_flyt.distributed.collectives import rank_and_world_size
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.flyt.algorithm import Algorithm
from datacomp_flyt.flyt.checkpoint import NAME, load_checkpoint, save_checkpoint
from datacomp_flyt.flyt.data import DownstreamBatch, UpstreamBatch
from datacomp_flyt.flyt.scoring_models import MixingModel
from datacomp_flyt.flyt.streams import StreamLoader
from datacomp_flyt.flyt.training_log import METRICS, TrainingLog

SCORING_MODEL = "scoring_model.safetensors"
REFERENCE_MODEL = "reference_model.pt"
EXTRACTOR = "extractor.pt"

EpochLoaders = tuple[StreamLoader[UpstreamBatch], StreamLoader[DownstreamBatch]]
Loaders = Callable[[int], EpochLoaders]
"""From the number of an epoch to its upstream and downstream batches."""


@dataclass(frozen=True)
class RunConfig:
    """Where and how long.

    Attributes:
        output_dir: of checkpoint, log and results.
        checkpoint_every: steps of an epoch.
        log_every: steps between lines of the log.
        report_to: see `training_log.DESTINATIONS`.
    """

    output_dir: Path
    checkpoint_every: int
    log_every: int
    report_to: tuple[str, ...]


def train(
    algorithm: Algorithm, loaders: Loaders, config: RunConfig, settings: dict[str, Any]
) -> None:
    """Train from the folder's checkpoint, or from the start, to the last step; write the models.

    Args:
        settings: all flags that decide the result; a checkpoint of others is refused.

    Raises:
        InputError: see `load_checkpoint`, `TrainingLog` and the loaders.
    """
    rank, _ = rank_and_world_size()
    if rank == 0:
        for name in (NAME, METRICS, SCORING_MODEL, REFERENCE_MODEL, EXTRACTOR):
            remove_unfinished(config.output_dir / name)
    settings = {**settings, **asdict(algorithm.config)}
    found = load_checkpoint(config.output_dir, settings)
    first = 0
    skipped: Counter[str] = Counter()
    if found is not None:
        first, state = found
        try:
            skipped.update(state.pop("data_skipped"))
            algorithm.load_state_dict(state)
        except (AttributeError, LookupError, TypeError) as error:  # it is of another layout
            raise InputError(
                f"{config.output_dir / NAME} has no state of this training ({error!r}): start "
                "again in another --output_dir"
            ) from None
    num_steps = algorithm.config.num_steps
    with TrainingLog(
        config.output_dir,
        num_steps,
        first,
        config.log_every,
        algorithm.config.upstream_batch_size,
        config.report_to,
        settings,
        enabled=rank == 0,
    ) as log:
        if first:
            log.say(f"going on after step {first}")
        while first < num_steps:
            last = min(first + config.checkpoint_every, num_steps)
            epoch = first // config.checkpoint_every
            _run_epoch(algorithm, loaders, epoch, range(first, last), skipped, log)
            first = last
            if rank == 0:
                state = {**algorithm.state_dict(), "data_skipped": dict(skipped)}
                save_checkpoint(config.output_dir, first, settings, state)
            _wait_for_all()
    if rank == 0:
        save_results(algorithm, config.output_dir)


def _run_epoch(
    algorithm: Algorithm,
    loaders: Loaders,
    epoch: int,
    steps: range,
    skipped: Counter[str],
    log: TrainingLog,
) -> None:
    with ExitStack() as stack:
        upstream_loader, downstream_loader = loaders(epoch)
        upstream = iter(stack.enter_context(upstream_loader))
        downstream = iter(stack.enter_context(downstream_loader))
        for number in steps:
            up, down = next(upstream), next(downstream)
            skipped.update(up.skipped)
            skipped.update(down.skipped)
            metrics = algorithm.step(number, up, down)
            if isinstance(algorithm.scoring, MixingModel):
                weights = algorithm.scoring.named_weights()
                metrics |= {f"weight/{name}": value for name, value in weights.items()}
            # of rank 0's streams
            metrics |= {f"left_out/{reason}": count for reason, count in sorted(skipped.items())}
            log.step(number, metrics)


def save_results(algorithm: Algorithm, output_dir: Path) -> None:
    """Write the scoring model, the reference model, and the extractor if it was trained."""
    algorithm.scoring.save(output_dir / SCORING_MODEL)
    _save_clip(algorithm.reference_state_dict(), output_dir / REFERENCE_MODEL)
    if algorithm.extractor is not None and algorithm.config.train_extractor:
        _save_clip(dict(algorithm.extractor.model.state_dict()), output_dir / EXTRACTOR)


def _save_clip(state: dict[str, torch.Tensor], path: Path) -> None:
    with atomic_write(path) as file:
        torch.save({name: tensor.cpu() for name, tensor in state.items()}, file)


def _wait_for_all() -> None:
    """No rank may go ahead of a checkpoint that is not written yet."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()
