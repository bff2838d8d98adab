"""VAS, the variance alignment score of an image with a target set or with the pool itself.

Wang et al., "Variance Alignment Score", 2024: with S = (1/M) sum_j t_j t_j^T over the M targets,

    VAS(i) = f_i^T S f_i

which is NormSim_2 squared over M, so the ranking is the same.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.embeddings import embedding_widths
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.scorers.base.embedding_blocks import iter_embedding_blocks
from datacomp_flyt.scorers.base.flags import add_arch, add_renormalize, add_targets
from datacomp_flyt.scorers.base.matrix_products import Compute
from datacomp_flyt.scorers.base.scorer import Arrays, PoolScorer, PoolState
from datacomp_flyt.scorers.base.second_moment import second_moment, square_root
from datacomp_flyt.scorers.base.targets import check_width, digest, load_targets


class Vas(PoolScorer):
    """VAS of a pool's image embeddings; without targets, the pool is the target."""

    uses_gpu = True

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        *,
        arch: str = "b32",
        renormalize: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            targets: files of target embeddings, see `load_targets`; None for the pool's own.
            arch: the prefix of the pool's array: `b32`, `l14`.
            renormalize: scale embeddings to unit norm.
            column: the name of the score; None for `vas`.

        Raises:
            InputError: a target file cannot be read.
        """
        self.targets, self.array, self.renormalize = targets, f"{arch}_img", renormalize
        self.arrays = (self.array,)
        self.columns = (column or "vas",)
        self.summarizes = not targets
        self.settings = {"array": self.array, "renormalize": renormalize, "targets": "the pool"}
        if targets:
            self.settings["targets"] = digest(load_targets(targets, self.array, renormalize))

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_targets(parser)
        add_arch(parser)
        add_renormalize(parser)

    def load(self, device: str) -> None:
        self.compute = Compute(device, "fp32")

    def summarize(self, shard: ParquetShard, state: Arrays) -> Arrays:
        return moment_of_rows(shard, self.array, self.renormalize)

    def reduce(
        self, state: PoolState | None, names: list[str], summary: Callable[[str], Arrays]
    ) -> PoolState:
        if self.targets:
            targets = load_targets(self.targets, self.array, self.renormalize)
            total = {"moment": second_moment(targets), "number": np.array(len(targets))}
        else:
            total = add_up(names, summary)
        root = square_root(total["moment"] / max(int(total["number"]), 1))
        return PoolState({"root": root}, {}, final=True)

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        check_width(shard, self.array, len(state["root"]))
        root = self.compute.put(state["root"])
        values = [
            torch.linalg.vector_norm(self.compute.put(block) @ root, dim=1).square().cpu().numpy()
            for (block,) in iter_embedding_blocks(shard, [self.array], self.renormalize, counts)
        ]
        return np.concatenate(values) if values else np.empty(0)


def moment_of_rows(shard: ParquetShard, array: str, renormalize: bool) -> Arrays:
    """Return the sum of f f^T over the usable rows of a file, and the number of these rows."""
    (width,) = embedding_widths(shard, [array])
    moment, count = np.zeros((width, width)), 0
    for (block,) in iter_embedding_blocks(shard, [array], renormalize, Counter()):
        usable = block[np.isfinite(block[:, 0])]
        count += len(usable)
        moment += second_moment(usable)
    return {"moment": moment, "number": np.array(count)}


def add_up(names: Sequence[str], summary: Callable[[str], Arrays]) -> Arrays:
    """Sum each array over all summaries, in the order of the names."""
    total: Arrays = {}
    for name in names:
        for key, value in summary(name).items():
            if key in total and total[key].shape != value.shape:
                raise InputError(
                    f"{name}.npz has embeddings of width {len(value)} and files before it of "
                    f"{len(total[key])}: a pool's embeddings are of one model"
                )
            total[key] = total[key] + value if key in total else value
    return total
