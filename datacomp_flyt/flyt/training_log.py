"""The log of training: progress, `metrics.jsonl`, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.progress import Progress

DESTINATIONS = ("tensorboard", "wandb")
METRICS = "metrics.jsonl"


class TrainingLog:
    """The log of one process. Of several ranks, only rank 0 has one that is enabled."""

    def __init__(
        self,
        directory: Path,
        num_steps: int,
        first_step: int,
        every: int,
        pairs_per_step: int,
        destinations: Sequence[str],
        settings: dict[str, Any],
        *,
        enabled: bool = True,
    ) -> None:
        """
        Args:
            directory: folder of `metrics.jsonl` and TensorBoard's files. Lines of steps after
                `first_step`, left by a killed run, are removed.
            num_steps: number of steps of the training.
            first_step: number of steps done before.
            every: number of steps between lines.
            pairs_per_step: upstream batch size of all ranks together.
            destinations: further destinations, out of `DESTINATIONS`.
            settings: settings of the run, for Weights & Biases.
            enabled: False to log nothing.

        Raises:
            InputError: a destination is not installed.
        """
        self.every, self.pairs, self.enabled = every, pairs_per_step, enabled
        self._num_steps = num_steps
        self._last = (time.perf_counter(), first_step)
        self._sinks: list[Any] = []
        if not enabled:
            return
        self._path = directory / METRICS
        self._drop_lines_from(first_step)
        for name in destinations:
            self._sinks.append(_SINKS[name](directory, first_step, settings))
        self._bar = Progress("training", num_steps, "step", initial=first_step)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a finished step, given its index from 0."""
        if not self.enabled:
            return
        self._bar.update()
        done = step + 1
        if done % self.every and done != self._num_steps:
            return
        now = time.perf_counter()
        seconds, steps = now - self._last[0], done - self._last[1]
        self._last = (now, done)
        metrics = {**metrics, "pairs_per_second": self.pairs * steps / seconds}
        line = {"step": done, **{name: _rounded(value) for name, value in metrics.items()}}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"{self._path} cannot be written ({error.strerror})") from None
        for sink in self._sinks:
            sink(done, metrics)
        values = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        self._bar.write(f"step {done}/{self._num_steps}  {values}")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.enabled:
            self._bar.write(text)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.enabled:
            self._bar.close()
        for sink in self._sinks:
            sink.close()

    def _drop_lines_from(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text(errors="replace").splitlines()
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            # the last line of a killed run, or a line that this log did not write
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        with atomic_write(self._path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())


def _rounded(value: float) -> float | None:
    """Round to six digits; None, which JSON writes as null, if the value is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


class _TensorBoard:
    def __init__(self, directory: Path, first_step: int, settings: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "--report_to tensorboard wants TensorBoard: pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, directory: Path, first_step: int, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise InputError(
                "--report_to wandb wants Weights & Biases: pip install wandb"
            ) from None
        self._run = wandb.init(
            project="datacomp_flyt",
            dir=str(directory),
            # equal after resuming, and different for another folder of the same name
            id=f"{directory.resolve().name}-{zlib.crc32(str(directory.resolve()).encode()):08x}",
            resume="allow",
            config=settings,
        )

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


_SINKS = {"tensorboard": _TensorBoard, "wandb": _Wandb}
