"""The same function on several ranks of `torch.distributed`, gloo on one machine's CPU.

No pytest in here: the ranks import it too. They come from a server that has imported what is slow
to import once, so that starting them takes no seconds each.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from datacomp_flyt.distributed.collectives import (
    gather_rows,
    rank_and_world_size,
    rows_of_rank,
    sum_over_ranks,
)
from datacomp_flyt.flyt.metagradient import Metagradient
from tests.flyt.problems import LOSSES, Problem, flat, problem, solve
from tests.oracles.flyt_inputs import Upstream

TIME_LIMIT = 120.0  # seconds
Found = dict[str, Any]
"""Tensors and numbers by name: what `torch.load` reads with weights_only."""


def on_ranks(world_size: int, function: Callable[[], Found], folder: Path) -> list[Found]:
    """What a function of a module gives on each rank, in their order.

    Raises:
        RuntimeError: a rank failed or took longer than `TIME_LIMIT`; the others are ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "open_clip"])
    ranks = [
        context.Process(target=_one_rank, args=(rank, world_size, function, str(folder)))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        for rank, process in enumerate(ranks):
            process.join(TIME_LIMIT)
            if process.exitcode != 0:
                raise RuntimeError(f"rank {rank} of {world_size} ended with {process.exitcode}")
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _one_rank(rank: int, world_size: int, function: Callable[[], Found], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIME_LIMIT / 2),
    )
    try:
        torch.save(function(), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


# ------------------------------------------------------------------------- what the ranks do


def cases() -> dict[str, tuple[Problem, dict[str, Any]]]:
    """Problems and arguments of `solve`; three classes are fewer than four ranks."""
    found: dict[str, tuple[Problem, dict[str, Any]]] = {}
    for loss in LOSSES:
        for micro_batch_size in (None, 1):
            given = problem(loss, classes=3)
            found[f"{loss} {micro_batch_size}"] = (given, {"micro_batch_size": micro_batch_size})
    for tangent in ("central", "one_sided"):
        found[tangent] = (problem("cross_entropy"), {"tangent": tangent})
    found["uneven"] = (problem("clip", downstream_batch=6), {})
    found["sgd"] = (problem("several_tasks", kind="sgd"), {})
    found["weight_zero"] = (with_zero(problem("clip")), {})
    found["not_finite"] = (with_nan(problem("cross_entropy")), {})
    return found


def with_zero(given: Problem) -> Problem:
    weights = given.weights.clone()
    weights[[1, 6]] = 0.0
    return replace(given, weights=weights)


def with_nan(given: Problem) -> Problem:
    """An image of the last rank is not a number."""
    images = given.upstream.images.clone()
    images[-1, 0, 0, 0] = torch.nan
    return replace(given, upstream=Upstream(images, given.upstream.texts))


def all_cases() -> Found:
    """By case, what `weight_metagradient` finds on this rank."""
    return {name: plain(solve(given, **options)) for name, (given, options) in cases().items()}


def plain(found: Metagradient) -> dict[str, Tensor]:
    return {
        "weight_gradient": found.weight_gradient,
        "params": flat(found.params),
        "grads": flat(found.grads),
        "upstream_loss": found.upstream_loss,
        "downstream_loss": found.downstream_loss,
        "logit_scale_grad": found.grads["logit_scale"],
        "temperature_gradient": found.logit_scale_gradient,
        "finite": torch.tensor(found.finite),
    }


def messages() -> Found:
    """Gathered and added numbers, of every shape and type, on this rank."""
    rank, world_size = rank_and_world_size()
    found: Found = {"rank": torch.tensor(rank), "world_size": torch.tensor(world_size)}
    for number in (8, 5, 3, 1):
        rows = torch.arange(2.0 * number, dtype=torch.float64).reshape(number, 2)
        found[f"rows {number}"] = gather_rows(rows[rows_of_rank(number)], number)
        labels = torch.arange(number)
        found[f"labels {number}"] = gather_rows(labels[rows_of_rank(number)], number)
    ones = torch.full((2, 3), rank + 1.0)
    tensors = [ones, torch.tensor(10.0 * (rank + 1)).double(), ones.T.clone().T, ones[:, 0] + rank]
    sum_over_ranks(iter(tensors))
    found["sums"] = {str(place): tensor for place, tensor in enumerate(tensors)}
    return found
