"""Long commands that tests stop: `python -m tests.cli.interrupted KIND FOLDER`."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from datacomp_flyt import steps
from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.processes import ProcessEngine
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.exits import running
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.threads import map_threads
from tests.engines import work

SECONDS = 120


def writing(folder: Path) -> None:
    """Write half of a file, in a locked folder."""
    with lock_outputs(folder / "out.npy"), atomic_write(folder / "out.npy") as file:
        file.write(b"half")
        (folder / "pid0").touch()
        time.sleep(SECONDS)


def threads(folder: Path) -> None:
    """Run threads with more items than they can finish."""

    def wait(number: int) -> None:
        (folder / "pid0").touch()
        time.sleep(0.2)

    map_threads(wait, range(SECONDS * 10), 2, "waiting")


def processes(folder: Path) -> None:
    """Run worker processes."""
    on(ProcessEngine(2, "cpu"), folder)


def ray(folder: Path) -> None:
    """Run workers on a Ray cluster of this machine."""
    from datacomp_flyt.engines.ray_cluster import RayEngine

    on(RayEngine(None, 2, "cpu"), folder)


def on(engine: Engine, folder: Path) -> None:
    items = {str(number): work.Marked(folder, number) for number in range(8)}
    run_shards(engine, work.Make(compute), items, lambda name, result: 1, 0, "computing")


def compute(device: str, item: tuple[str, work.Marked]) -> None:
    work.compute_for_long(device, item[1])


def step(folder: Path) -> None:
    """Run a step whose command, in another process, is `writing`."""
    steps.PRELOADED = ()
    words = ("python", "-m", "tests.cli.interrupted", "writing", str(folder))
    steps.run_steps([steps.Step("long", "Take long", words)], folder / "run", quiet=True)


def wrapped(folder: Path) -> None:
    """Run like a library that turns every error into one of its own."""
    (folder / "pid0").touch()
    try:
        time.sleep(SECONDS)
    except BaseException:
        raise RuntimeError("the reader failed") from None


def lingering(folder: Path) -> None:
    """Run like a library that ends slowly."""
    (folder / "pid0").touch()
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(SECONDS)
    (folder / "pid1").touch()
    time.sleep(SECONDS)


if __name__ == "__main__":
    with running("interrupted"):
        globals()[sys.argv[1]](Path(sys.argv[2]))
