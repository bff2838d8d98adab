"""Flags of the commands that run over shards: which engine, how many workers, retries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from datacomp_flyt.engines.choice import ENGINE_FLAGS, choose_engine
from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.errors import InputError, NothingUsable, lacks_memory
from datacomp_flyt.streams import say


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
