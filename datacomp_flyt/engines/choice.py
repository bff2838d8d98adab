"""Which engine: the flags that say so, and the engine that they say."""

from __future__ import annotations

from typing import Any

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.errors import InputError
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
