"""The training loop around Algorithm 1: batches, checkpoints, log and results.

An epoch is the run of steps between two checkpoints (`checkpoint_every`). Its data depends on
(seed, epoch) alone, so a killed run resumes from its last checkpoint with the batches that it would
have seen.
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
MakeLoaders = Callable[[int], EpochLoaders]
"""Makes the upstream and downstream batches of an epoch, given its index."""


@dataclass(frozen=True)
class RunConfig:
    """The files that a training writes, and the steps at which it writes them.

    Attributes:
        output_dir: folder of checkpoint, log and results.
        checkpoint_every: number of steps between checkpoints, which is an epoch.
        log_every: number of steps between lines of the log.
        report_to: other destinations of the log, out of `training_log.DESTINATIONS`.
    """

    output_dir: Path
    checkpoint_every: int
    log_every: int
    report_to: tuple[str, ...]


def run_epochs(
    algorithm: Algorithm, make_loaders: MakeLoaders, config: RunConfig, settings: dict[str, Any]
) -> dict[str, float]:
    """Train from the folder's checkpoint, or from the start, to the last step; write the models.

    Args:
        algorithm: the models, which are trained in place.
        make_loaders: makes the batches of each epoch.
        config: output folder and intervals.
        settings: options that decide the result; a checkpoint with other settings is refused.

    Returns:
        Metrics of the last step, by name; empty if the training was finished already.

    Raises:
        InputError: see `load_checkpoint`, `TrainingLog` and the loaders.
    """
    rank, _ = rank_and_world_size()
    if rank == 0:
        for name in (NAME, METRICS, SCORING_MODEL, REFERENCE_MODEL, EXTRACTOR):
            remove_unfinished(config.output_dir / name)
    settings = {**settings, **asdict(algorithm.config)}
    skipped: Counter[str] = Counter()
    first = _resume(algorithm, config.output_dir, settings, skipped)
    num_steps = algorithm.config.num_steps
    metrics: dict[str, float] = {}
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
            log.say(f"resuming after step {first}")
        while first < num_steps:
            end = min(first + config.checkpoint_every, num_steps)
            epoch = first // config.checkpoint_every
            metrics = _run_epoch(algorithm, make_loaders(epoch), range(first, end), skipped, log)
            first = end
            if rank == 0:
                state = {**algorithm.state_dict(), "data_skipped": dict(skipped)}
                save_checkpoint(config.output_dir, first, settings, state)
            _wait_for_all()
    if rank == 0:
        save_results(algorithm, config.output_dir)
    return metrics


def _resume(
    algorithm: Algorithm, output_dir: Path, settings: dict[str, Any], skipped: Counter[str]
) -> int:
    """Restore the folder's checkpoint, if there is one; return the number of steps done."""
    checkpoint = load_checkpoint(output_dir, settings)
    if checkpoint is None:
        return 0
    steps_done, state = checkpoint
    try:
        skipped.update(state.pop("data_skipped"))
        algorithm.load_state_dict(state)
    except (AttributeError, LookupError, TypeError) as error:  # a checkpoint of another version
        raise InputError(
            f"{output_dir / NAME} has no state of this training ({error!r}): start again in "
            "another --output_dir"
        ) from None
    return steps_done


def _run_epoch(
    algorithm: Algorithm,
    loaders: EpochLoaders,
    steps: range,
    skipped: Counter[str],
    log: TrainingLog,
) -> dict[str, float]:
    """Train for one epoch, and return the metrics of its last step."""
    metrics: dict[str, float] = {}
    with ExitStack() as stack:
        upstream = iter(stack.enter_context(loaders[0]))
        downstream = iter(stack.enter_context(loaders[1]))
        for step in steps:
            upstream_batch, downstream_batch = next(upstream), next(downstream)
            skipped.update(upstream_batch.skipped)
            skipped.update(downstream_batch.skipped)
            metrics = algorithm.step(step, upstream_batch, downstream_batch)
            if isinstance(algorithm.scoring, MixingModel):
                weights = algorithm.scoring.named_weights()
                metrics |= {f"weight/{name}": value for name, value in weights.items()}
            # counts of this rank; only rank 0 logs
            metrics |= {f"left_out/{reason}": count for reason, count in sorted(skipped.items())}
            log.step(step, metrics)
    return metrics


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
    """Wait until rank 0 has written the checkpoint."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()
