"""The passes of a pool scorer over its shards, kept on disk so that a killed job can resume."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datacomp_flyt.files.open_file import readable
from datacomp_flyt.files.output_files import atomic_write, remove_unfinished
from datacomp_flyt.scorers.base.scorer import Arrays, PoolScorer, PoolState
from datacomp_flyt.threads import retry_on_read_error


class Passes:
    """The passes of a pool scorer over its shards, kept on disk.

    Pass k, counted from 0, leaves these files, and the end of pass k + 1 removes its state:
    `k/NAME.npz` are the summaries of the shards, which the end of pass k removes;
    `k.state/NAME.npz` the next state of each shard; and `k.state.npz` the common state, which is
    written last, so it marks the pass as finished.
    """

    FILES: ClassVar[tuple[str, ...]] = ("_passes/**/*.npz", "passes/**/*.npz")
    """Patterns of the files of all passes, in the folder of the score column."""

    def __init__(self, scores: Path) -> None:
        """
        Args:
            scores: the folder of the score column. The passes lie in `_passes/` there, which
                readers of the column's tables ignore.
        """
        self._folder = scores / "_passes"
        if (scores / "passes").is_dir() and not self._folder.exists():  # an older name
            os.rename(scores / "passes", self._folder)
        self._index = 0

    @property
    def title(self) -> str:
        """The name of the current pass, for the progress bar."""
        return f"pass {self._index + 1}"

    def last_state(self) -> PoolState | None:
        """Return the state of the last finished pass; None if there is none."""
        indices = [int(path.name.split(".")[0]) for path in self._folder.glob("*.state.npz")]
        self._index = max(indices, default=-1) + 1
        return self._read_state()

    def _read_state(self) -> PoolState | None:
        """Return the state that the current pass began with."""
        if not self._index:
            return None
        common = _load(self._state_file(self._index - 1))
        final = bool(common.pop("final"))
        return PoolState(common, StoredArrays(self._state_folder(self._index - 1)), final)

    def unfinished(self, shards: Mapping[str, Any], state: PoolState) -> dict[str, Any]:
        """Return the shards without a summary in this pass, each with its state."""
        self._summaries.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self._summaries)
        left = {}
        for name in sorted(shards):
            if not (self._summaries / f"{name}.npz").exists():
                left[name] = (shards[name], state.by_shard.get(name, {}))
        return left

    def write_summary(self, name: str, summary: Arrays) -> int:
        """Write a summary; returns 0, since the shard's rows are not scored yet."""
        _save(self._summaries / f"{name}.npz", summary)
        return 0

    def reduce(self, scorer: PoolScorer, names: list[str]) -> PoolState:
        """End this pass: write and return the next state, and remove the older one."""
        state = scorer.reduce(self._read_state(), names, StoredArrays(self._summaries).__getitem__)
        folder = self._state_folder(self._index)
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in state.by_shard.items():
            _save(folder / f"{name}.npz", arrays)
        _save(self._state_file(self._index), {**state.common, "final": np.array(state.final)})
        shutil.rmtree(self._summaries, ignore_errors=True)
        if self._index:
            self._state_file(self._index - 1).unlink()
            shutil.rmtree(self._state_folder(self._index - 1))
        self._index += 1
        return PoolState(state.common, StoredArrays(folder), state.final)

    def remove(self) -> None:
        """Remove the passes, when all scores are written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _summaries(self) -> Path:
        return self._folder / str(self._index)

    def _state_file(self, index: int) -> Path:
        return self._folder / f"{index}.state.npz"

    def _state_folder(self, index: int) -> Path:
        return self._folder / f"{index}.state"


class StoredArrays(Mapping[str, Arrays]):
    """Arrays by the name of a shard, read on access."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Arrays:
        path = self._folder / f"{name}.npz"
        if not path.exists():
            raise KeyError(name)
        return _load(path)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self._folder.glob("*.npz")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _save(path: Path, arrays: Arrays) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with atomic_write(path) as file:
        file.write(content.getbuffer())


@retry_on_read_error
def _load(path: Path) -> Arrays:
    with (
        readable(str(path), "npz", f"remove {path.parent} to begin anew"),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        return {name: archive[name] for name in archive.files}
