"""Flags of the commands that run over shards: which engine, how many workers, retries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.errors import InputError, NothingUsable, lacks_memory
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers

ENGINE_FLAGS: dict[str, dict[str, Any]] = {
    "--engine": {
        "choices": ("processes", "ray"),
        "help": "processes of this machine (default), or a Ray cluster",
    },
    "--ray_address": {
        "metavar": "ADDRESS",
        "help": "of an existing cluster (host:port, or 'auto'); without it Ray is started here",
    },
}


def choose_engine(
    engine: str | None, ray_address: str | None, num_workers: int | None, device: str
) -> Engine:
    """The engine of the flags.

    Args:
        engine: "processes", also if None, or "ray", which is imported only then.
        ray_address: of `RayEngine`.
        num_workers: of either engine; None for one on each CPU.
        device: of either engine.

    Raises:
        InputError: flags that do not go together, or Ray is not installed.
    """
    if engine == "ray":
        from datacomp_flyt.engines.ray_cluster import RayEngine

        return RayEngine(ray_address, num_workers, device)
    if ray_address:
        raise InputError("--ray_address is for --engine ray: add it, or leave the address out")
    return ProcessEngine(default_num_workers() if num_workers is None else num_workers, device)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    for flag, options in ENGINE_FLAGS.items():
        parser.add_argument(flag, **options)
    parser.add_argument(
        "--num_workers",
        type=int,
        help="workers (default: one a core, or one a GPU); the result does not depend on them",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where matrix work is done (default: a GPU where there is one)",
    )
    parser.add_argument(
        "--retries", type=int, default=2, help="of a shard that failed (default: 2)"
    )


def make_engine(args: argparse.Namespace, uses_gpu: bool = True) -> Engine:
    """The engine of the flags.

    Args:
        uses_gpu: whether the work has use for GPUs; workers are on CPU cores otherwise.

    Raises:
        InputError: flags that do not go together, or Ray is not installed.
    """
    if args.num_workers is not None and args.num_workers < 1:
        raise InputError(f"--num_workers is {args.num_workers}, wanted at least 1")
    if args.retries < 0:
        raise InputError(f"--retries is {args.retries}, wanted 0 or more")
    device = args.device if uses_gpu else "cpu"
    return choose_engine(args.engine, args.ray_address, args.num_workers, device)


def report_failures(
    failed: Mapping[str, Exception], what: str, others: str = "the others are done"
) -> int:
    """Name the shards that failed on stderr.

    Args:
        others: a clause on the state of the other shards.

    Returns:
        the exit code: 2 if some can be read and hold nothing usable, 1 if others failed, else 0.
    """
    for name, error in failed.items():
        hint = "; fewer --num_workers take less memory" if lacks_memory(error) else ""
        say(f"{what}: shard {name} failed: {error}{hint}", error=True)
    if failed:
        say(
            f"{what}: {len(failed):,} shards failed and {others}; mend them and give the same "
            "command again",
            error=True,
        )
    if any(isinstance(error, NothingUsable) for error in failed.values()):
        return 2
    return 1 if failed else 0
