"""M-FLYT: a learned linear mix of score columns, as another column (FLYT, section 3.4)."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.files.folders import list_folder
from datacomp_flyt.mixing import load_mixing_model, mix
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.scorers.base.scorer import Arrays, PoolScorer, PoolState
from datacomp_flyt.tars.shard_names import shard_name
from datacomp_flyt.threads import default_num_workers


class MFlyt(PoolScorer):
    """A mix of the columns in `--scores_dir` and the metadata, joined on the uid.

    Columns are standardised over the pool, unless the model holds its statistics. The reduction
    joins and mixes the columns of the whole pool, one column in memory at a time; a shard only
    takes its rows of the result.
    """

    summarizes = False

    def __init__(
        self,
        *,
        scoring_model: str | None,
        metadata_dir: str | None,
        scores_dir: str | None = None,
        allow_missing_scores: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            scoring_model: `paper`, a .safetensors file of ours, or the published mflyt.pt.
            metadata_dir: the pool.
            scores_dir: the folder of score tables, in sub-folders too.
            allow_missing_scores: mix the columns that exist where the model has more.
            column: the name of the score; None for `m_flyt`.

        Raises:
            InputError: the model cannot be read, or an argument is missing.
        """
        if scoring_model is None or metadata_dir is None:
            missing = "--scoring_model" if scoring_model is None else "--metadata_dir"
            raise InputError(f"{missing} is missing: --scorer m_flyt wants both")
        self.model = load_mixing_model(scoring_model)
        self.metadata_dir, self.scores_dir = metadata_dir, scores_dir
        self.allow_missing_scores = allow_missing_scores
        self.columns = (column or "m_flyt",)
        is_file = scoring_model != "paper"
        self.settings = {
            "scoring_model": file_digest(scoring_model) if is_file else "paper",
            "allow_missing_scores": allow_missing_scores,
            "tables": self._state_of_tables(),
        }

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--scoring_model",
            help="'paper' for Table 2, a .safetensors file of ours, or the published mflyt.pt",
        )
        parser.add_argument(
            "--allow_missing_scores", action="store_true", help="mix the columns that exist"
        )

    def summarize(self, shard: ParquetShard, state: Arrays) -> Arrays:
        return {}

    def reduce(
        self, state: PoolState | None, names: list[str], summary: Callable[[str], Arrays]
    ) -> PoolState:
        num_workers = default_num_workers()
        pool = read_pool(self.metadata_dir, num_workers)
        scores_dir = self.scores_dir if self._tables() else None  # a bare pool has two columns
        columns = Columns(pool, self.metadata_dir, scores_dir, num_workers, True, True)
        model = self.model.restricted_to(
            columns.find(self.model.columns, self.allow_missing_scores)
        )
        scores, _ = mix(model, columns.each_time(model.columns), num_workers)
        by_shard = {
            shard_name(shard.path): {
                "scores": np.where(positions >= 0, scores[positions], np.nan).astype(np.float32)
            }
            for shard, positions in zip(pool.shards, pool.positions, strict=True)
        }
        return PoolState({}, by_shard, final=True)

    def _tables(self) -> list[Path]:
        """List the files of the columns, without those of earlier mixes."""
        if self.scores_dir is None:
            return []
        folder = Path(self.scores_dir)
        if not folder.is_dir():
            return []
        files = list_folder(self.scores_dir, "--scores_dir", (".parquet",), recursive=True)
        paths = [folder / files.name(path) for path in files.versions]
        return [path for path in paths if path.parent.name != self.columns[0]]

    def _state_of_tables(self) -> str:
        """Hash the state of the files, so that mixes of different states are never combined."""
        digest = hashlib.sha256()
        for path in self._tables():
            stat = path.stat()
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        scores = state["scores"]
        counts["a score to mix is missing or not finite"] += int(np.count_nonzero(np.isnan(scores)))
        return scores
