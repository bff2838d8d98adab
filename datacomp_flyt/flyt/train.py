"""Learn a scoring model: `datacomp-flyt train`, or `torchrun -m datacomp_flyt.flyt.train`."""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main, running

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.flyt.train")

import argparse
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.distributed.collectives import rank_and_world_size
from datacomp_flyt.distributed.torchrun_ranks import place_of_torchrun
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.flyt.algorithm import Algorithm, AlgorithmConfig
from datacomp_flyt.flyt.checkpoint import NAME
from datacomp_flyt.flyt.data import downstream_loader, upstream_loader
from datacomp_flyt.flyt.downstream_tasks import open_tasks
from datacomp_flyt.flyt.flags import FREE_FLAGS, add_arguments, fill_in
from datacomp_flyt.flyt.prompts import Prompts
from datacomp_flyt.flyt.scoring_models import GluHead, MixingModel, ScoringModel
from datacomp_flyt.flyt.stream_settings import StreamSettings
from datacomp_flyt.flyt.trainer import (
    EXTRACTOR,
    REFERENCE_MODEL,
    SCORING_MODEL,
    EpochLoaders,
    RunConfig,
    train,
)
from datacomp_flyt.flyt.training_log import METRICS
from datacomp_flyt.flyt.uid_features import UidFeatures, embedding_features, score_features
from datacomp_flyt.installation import require_training
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.tars.shards import list_shards


@dataclass(frozen=True)
class Scoring:
    """A scoring model with where its features come from: a table by uid, or a CLIP model."""

    model: ScoringModel
    table: UidFeatures | None
    extractor: nn.Module | None


def run(args: argparse.Namespace) -> int:
    """Train as the flags say; returns the exit code.

    Raises:
        InputError: something given is wrong.
    """
    require_training("datacomp-flyt train")
    fill_in(args)
    device = _start_processes(args.device)
    try:
        _train(args, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _train(args: argparse.Namespace, device: torch.device) -> None:
    rank, world_size = rank_and_world_size()
    _check_division(args, world_size)
    output_dir = _open_output(args, rank)
    with contextlib.nullcontext() if rank else lock_outputs(output_dir):
        _train_into(output_dir, args, device)


def _train_into(output_dir: Path, args: argparse.Namespace, device: torch.device) -> None:
    rank, world_size = rank_and_world_size()
    tasks = open_tasks(args.downstream_dir, args.downstream_tasks, args.evaluation_dir)
    shards = list_shards(args.train_data, "--train_data", commands=True)
    reference = load_clip_model(
        args.reference_model, args.reference_init, "reference", seed=args.seed
    )
    scoring = _make_scoring(args, device)
    if scoring.extractor is not None:
        _check_inputs(args, reference.model, scoring.extractor)

    def loaders(epoch: int) -> EpochLoaders:
        def settings(batch_size: int, shuffle: int) -> StreamSettings:
            return StreamSettings(
                transform=reference.transform,
                batch_size=batch_size,
                num_streams=args.num_streams,
                seed=args.seed,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
                num_workers=args.num_workers,
                shuffle_buffer=(shuffle, max(shuffle // 5, 1)),
                max_bad_share=args.max_bad_share,
            )

        from_tars = args.downstream_loss == "clip" and args.captions == "txt"
        return (
            upstream_loader(
                shards,
                reference.tokenize,
                settings(args.upstream_batch_size, args.upstream_shuffle),
                scoring.table,
                f"--train_data {args.train_data}",
            ),
            downstream_loader(
                tasks,
                settings(args.downstream_batch_size, args.downstream_shuffle),
                args.task_weights,
                reference.tokenize if from_tars else None,
                name=f"--downstream_dir {args.downstream_dir}",
            ),
        )

    algorithm = Algorithm(
        _algorithm_config(args),
        reference.model.to(device),
        scoring.model.to(device),
        None if scoring.extractor is None else scoring.extractor.to(device),
        Prompts(tasks, reference.tokenize, args.seed),
    )
    config = RunConfig(output_dir, args.checkpoint_every, args.log_every, tuple(args.report_to))
    deciding = {name: value for name, value in vars(args).items() if name not in FREE_FLAGS}
    train(algorithm, loaders, config, deciding)


def _make_scoring(args: argparse.Namespace, device: torch.device) -> Scoring:
    """The scoring model; random weights are drawn by the seed."""
    table: UidFeatures | None = None
    extractor: nn.Module | None = None
    model: ScoringModel
    torch.manual_seed(args.seed)
    if args.features == "scores":
        if args.scores_dir is None and args.metadata_dir is None:
            raise InputError("--features scores wants --scores_dir, the folder of score tables")
        found = score_features(
            args.scores_dir,
            args.score_columns,
            _threads(),
            args.metadata_dir,
            args.allow_partial_scores,
            args.drop_nonfinite,
            progress=rank_and_world_size()[0] == 0,
        )
        table = found.features
        statistics = None if args.no_standardize else (found.mean.tolist(), found.std.tolist())
        model = MixingModel(args.score_columns, statistics)
    else:
        if args.features == "embeddings":
            if args.metadata_dir is None:
                raise InputError("--features embeddings wants --metadata_dir, with npz files in it")
            table = embedding_features(
                args.metadata_dir, args.embedding_arrays, _threads(), args.drop_nonfinite
            )
            width, arrays = table.values.shape[1], args.embedding_arrays
        else:
            extractor = load_clip_model(
                args.extractor_model, args.extractor_init, "extractor", seed=args.seed
            ).model
            width, arrays = 2 * _embedding_width(extractor), None
        model = GluHead(width, arrays, args.glu_layers, args.glu_hidden_ratio, args.cosine_start)
    if args.scoring_init is not None:
        model.load(args.scoring_init)
    return Scoring(model, table, extractor)


def _check_inputs(args: argparse.Namespace, reference: Any, extractor: Any) -> None:
    """Both models get the images and tokens that are made for the reference model."""
    for what, found, wanted in (
        ("images of", extractor.visual.image_size, reference.visual.image_size),
        ("texts of", extractor.context_length, reference.context_length),
    ):
        if found != wanted:
            raise InputError(
                f"--extractor_model {args.extractor_model} takes {what} {found} and "
                f"--reference_model {args.reference_model} of {wanted}: give models that take the "
                "same"
            )


def _embedding_width(model: Any) -> int:
    with torch.no_grad():
        return int(model.encode_text(torch.zeros(1, model.context_length).long()).shape[1])


def _algorithm_config(args: argparse.Namespace) -> AlgorithmConfig:
    names = AlgorithmConfig.__dataclass_fields__
    values = {name: getattr(args, name) for name in names if name != "betas"}
    return AlgorithmConfig(**values, betas=(args.beta1, args.beta2))


def _check_division(args: argparse.Namespace, world_size: int) -> None:
    for name in ("upstream_batch_size", "downstream_batch_size"):
        size = getattr(args, name)
        if size % world_size:
            raise InputError(
                f"--{name} {size} is not divisible by {world_size} processes: give a multiple"
            )
        if size % args.num_streams:
            raise InputError(
                f"--{name} {size} is not divisible by --num_streams {args.num_streams}: give a "
                "divisor of both batch sizes"
            )
    if args.num_streams % world_size:
        raise InputError(
            f"--num_streams {args.num_streams} is not divisible by {world_size} processes: give "
            "a multiple"
        )


def _open_output(args: argparse.Namespace, rank: int) -> Path:
    path = Path(args.output_dir)
    if path.exists() and not path.is_dir():
        raise InputError(f"--output_dir {path} is a file: give a folder")
    if (path / NAME).exists() and not args.resume:
        raise InputError(
            f"--output_dir {path} holds a checkpoint: go on from it with --resume, or give another"
        )
    written = (NAME, METRICS, SCORING_MODEL, REFERENCE_MODEL, EXTRACTOR)
    check_outputs([Output("--output_dir", path, written)], vars(args))
    if rank == 0:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_dir {path} cannot be made ({error.strerror})") from None
    return path


def _start_processes(device: str | None) -> torch.device:
    """Join the other ranks, if torchrun started this one; the device to train on."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = place_of_torchrun()
    if place is not None:
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.startswith("cuda") else "gloo",
            store=place.meet("train"),
            rank=place.rank,
            world_size=place.size,
        )
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device} cannot be used ({str(error).splitlines()[0]}): give cuda or cpu"
        ) from None
    return found


def _threads() -> int:
    return max(torch.get_num_threads(), 1)


def main(argv: Sequence[str] | None = None) -> None:
    """`torchrun --nproc_per_node 8 -m datacomp_flyt.flyt.train --preset m_flyt_base ...`."""
    parser = Parser(
        prog="python -m datacomp_flyt.flyt.train", description=(__doc__ or "").split("\n")[0]
    )
    add_arguments(parser)
    with running("datacomp_flyt.flyt.train") as command:
        args = parser.parse_args(argv)
        command.flags = vars(args)
        raise SystemExit(run(args))
