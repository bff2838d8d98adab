"""Flags of the commands that run over shards: engine, number of workers, device and retries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.engines.engine import Engine, WorkerLost
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.errors import InputError, NothingUsable, lacks_memory
from datacomp_flyt.streams import say
from datacomp_flyt.threads import check_num_workers

ENGINE_FLAGS: dict[str, dict[str, Any]] = {
    "--engine": {
        "choices": ("processes", "ray"),
        "help": "run in processes of this machine (default), or on a Ray cluster",
    },
    "--ray_address": {
        "metavar": "ADDRESS",
        "help": "address of a running Ray cluster (host:port, or 'auto'); without it Ray starts "
        "on this machine",
    },
}


def choose_engine(
    engine: str | None, ray_address: str | None, num_workers: int | None, device: str
) -> Engine:
    """Return the engine that the flags select.

    Args:
        engine: "processes" or "ray", which is imported on demand; None means "processes".
        ray_address: the address of a Ray cluster, see `RayEngine`.
        num_workers: the number of workers; None for one per CPU.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: flags exclude each other, or Ray is not installed.
    """
    if engine == "ray":
        from datacomp_flyt.engines.ray_cluster import RayEngine

        return RayEngine(ray_address, num_workers, device)
    if ray_address:
        raise InputError("--ray_address is for --engine ray: add it, or leave the address out")
    return ProcessEngine(check_num_workers(num_workers), device)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--engine`, `--ray_address`, `--num_workers`, `--device` and `--retries`."""
    for flag, options in ENGINE_FLAGS.items():
        parser.add_argument(flag, **options)
    parser.add_argument(
        "--num_workers",
        type=int,
        help="number of workers (default: one per core, or one per GPU); the result does not "
        "depend on it",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device of matrix products (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--retries", type=int, default=2, help="retries of a shard that failed (default: 2)"
    )


def make_engine(
    engine: str | None = None,
    *,
    ray_address: str | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    retries: int = 2,
    uses_gpu: bool = True,
) -> Engine:
    """Return the engine that the flags select; for the other arguments see `choose_engine`.

    Args:
        retries: the number of retries of a failed shard, which is only checked.
        uses_gpu: whether the work can use GPUs; otherwise workers run on CPU cores.

    Raises:
        InputError: flags that exclude each other, or Ray is not installed.
    """
    if num_workers is not None:
        check_num_workers(num_workers)
    check_integer(retries, "--retries", least=0)
    return choose_engine(engine, ray_address, num_workers, device if uses_gpu else "cpu")


def report_failures(
    failed: Mapping[str, Exception], command: str, others: str = "the others are done"
) -> int:
    """Print the shards that failed on stderr.

    Args:
        failed: the error of each shard that failed, by name.
        command: the command, for the messages.
        others: a clause on the state of the other shards.

    Returns:
        the exit code: 0 if none failed, 2 if a shard can be read and holds nothing usable, else 1.
    """
    for name, error in failed.items():
        hint = "; fewer --num_workers take less memory" if lacks_memory(error) else ""
        say(f"{command}: shard {name} failed: {error}{hint}", error=True)
    if failed:
        shards = "1 shard" if len(failed) == 1 else f"{len(failed):,} shards"
        lost = all(isinstance(error, WorkerLost) for error in failed.values())
        way_out = "run" if lost else "correct what the lines above report and run"
        say(
            f"{command}: {shards} failed and {others}; {way_out} the same command again", error=True
        )
    if any(isinstance(error, NothingUsable) for error in failed.values()):
        return 2
    return 1 if failed else 0
