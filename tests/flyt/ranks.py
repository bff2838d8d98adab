"""Runs a function on several ranks of `torch.distributed` (gloo, on one machine).

The ranks import this module, so it does not import pytest. They are forked from a server that has
imported torch and open_clip, so that they start quickly.
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
Results = dict[str, Any]
"""Tensors and numbers by name, which `torch.load` reads with weights_only."""


def on_ranks(world_size: int, function: Callable[[], Results], folder: Path) -> list[Results]:
    """Run a function of a module on each rank, and return its results in rank order.

    Raises:
        RuntimeError: a rank failed or exceeded `TIME_LIMIT`; the other ranks are ended.
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


def _one_rank(rank: int, world_size: int, function: Callable[[], Results], folder: str) -> None:
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


# ------------------------------------------------------------- functions that the ranks run


def cases() -> dict[str, tuple[Problem, dict[str, Any]]]:
    """Return problems and arguments of `solve`; three classes leave one of four ranks without."""
    results: dict[str, tuple[Problem, dict[str, Any]]] = {}
    for loss in LOSSES:
        for micro_batch_size in (None, 1):
            given = problem(loss, classes=3)
            results[f"{loss} {micro_batch_size}"] = (given, {"micro_batch_size": micro_batch_size})
    for tangent in ("central", "one_sided"):
        results[tangent] = (problem("cross_entropy"), {"tangent": tangent})
    results["uneven"] = (problem("clip", downstream_batch=6), {})
    results["sgd"] = (problem("several_tasks", kind="sgd"), {})
    results["weight_zero"] = (with_zero(problem("clip")), {})
    results["not_finite"] = (with_nan(problem("cross_entropy")), {})
    return results


def with_zero(given: Problem) -> Problem:
    weights = given.weights.clone()
    weights[[1, 6]] = 0.0
    return replace(given, weights=weights)


def with_nan(given: Problem) -> Problem:
    """Replace a pixel of an image of the last rank by NaN."""
    images = given.upstream.images.clone()
    images[-1, 0, 0, 0] = torch.nan
    return replace(given, upstream=Upstream(images, given.upstream.texts))


def all_cases() -> Results:
    """Return the result of `weight_metagradient` on this rank, by case."""
    return {name: plain(solve(given, **options)) for name, (given, options) in cases().items()}


def plain(results: Metagradient) -> dict[str, Tensor]:
    return {
        "weight_gradient": results.weight_gradient,
        "params": flat(results.params),
        "grads": flat(results.grads),
        "upstream_loss": results.upstream_loss,
        "downstream_loss": results.downstream_loss,
        "logit_scale_grad": results.grads["logit_scale"],
        "temperature_gradient": results.logit_scale_gradient,
        "finite": torch.tensor(results.finite),
    }


def messages() -> Results:
    """Gather and sum tensors of several shapes and dtypes on this rank."""
    rank, world_size = rank_and_world_size()
    results: Results = {"rank": torch.tensor(rank), "world_size": torch.tensor(world_size)}
    for num_rows in (8, 5, 3, 1):
        rows = torch.arange(2.0 * num_rows, dtype=torch.float64).reshape(num_rows, 2)
        results[f"rows {num_rows}"] = gather_rows(rows[rows_of_rank(num_rows)], num_rows)
        labels = torch.arange(num_rows)
        results[f"labels {num_rows}"] = gather_rows(labels[rows_of_rank(num_rows)], num_rows)
    ones = torch.full((2, 3), rank + 1.0)
    tensors = [ones, torch.tensor(10.0 * (rank + 1)).double(), ones.T.clone().T, ones[:, 0] + rank]
    sum_over_ranks(iter(tensors))
    results["sums"] = {str(place): tensor for place, tensor in enumerate(tensors)}
    return results
