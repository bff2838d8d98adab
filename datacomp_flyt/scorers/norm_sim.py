"""NormSim: similarity of a pool's image to the images of a target set.

Wang et al., NeurIPS 2024 (see `neg_clip_loss`). With the M target embeddings t_j,

    NormSim_p(i) = (sum_j |<f_i, t_j>|^p)^(1/p),   NormSim_inf(i) = max_j |<f_i, t_j>|

For p = 2 the sum is f_i^T (sum_j t_j t_j^T) f_i: d numbers per example instead of M.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datacomp_flyt.clip.flags import add_precision
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.scorers.base.embedding_blocks import Floats, iter_embedding_blocks
from datacomp_flyt.scorers.base.flags import add_arch, add_renormalize, add_targets
from datacomp_flyt.scorers.base.matrix_products import Compute, products
from datacomp_flyt.scorers.base.scorer import Arrays, MetadataScorer
from datacomp_flyt.scorers.base.second_moment import second_moment, square_root
from datacomp_flyt.scorers.base.targets import check_width, digest, load_targets

_TINY = 1e-300


class NormSim(MetadataScorer):
    """NormSim_p of a pool's image embeddings to target embeddings of the same model."""

    uses_gpu = True

    def __init__(
        self,
        targets: Sequence[str],
        *,
        p: float = math.inf,
        arch: str = "b32",
        precision: str = "fp32",
        renormalize: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            targets: files of target embeddings, see `load_targets`.
            p: the order of the norm, at least 1; infinity for the maximum.
            arch: the prefix of the pool's array: `b32`, `l14`.
            precision: `fp32` or `bf16`, see `Compute`.
            renormalize: scale embeddings to unit norm.
            column: the name of the score; None for `normsim_{p}`.

        Raises:
            InputError: an argument is out of range, or a target file cannot be read.
        """
        if not targets:
            raise InputError("--targets is missing: give files of target embeddings")
        if not p >= 1:
            raise InputError(f"--p is {p}, wanted 1 or more (such as 2 or inf)")
        self.array = f"{arch}_img"
        self.arrays = (self.array,)
        self.targets, self.p = list(targets), p
        self.precision, self.renormalize = precision, renormalize
        self.columns = (column or f"normsim_{p:g}",)
        self.settings = {
            "array": self.array,
            "p": str(p),
            "targets": digest(self._load_targets()),
            "precision": precision,
            "renormalize": renormalize,
        }

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_targets(parser)
        add_arch(parser)
        add_renormalize(parser)
        add_precision(parser)
        parser.add_argument(
            "--p", type=float, default=math.inf, help="of the norm: inf (default), 2, or any >= 1"
        )

    def _load_targets(self) -> Floats:
        return load_targets(self.targets, self.array, self.renormalize)

    def load(self, device: str) -> None:
        self.compute = Compute(device, self.precision)
        targets = self._load_targets()
        self.width = targets.shape[1]
        if self.p == 2:
            self.root = self.compute.put(square_root(second_moment(targets)))
        else:
            self.factor = self.compute.factor(self.compute.put(targets))

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        check_width(shard, self.array, self.width)
        scores = np.empty(shard.num_rows, np.float32)
        row = 0
        for (block,) in iter_embedding_blocks(shard, [self.array], self.renormalize, counts):
            images = self.compute.put(block)
            if self.p == 2:
                values = torch.linalg.vector_norm(images @ self.root, dim=1)
            else:
                values = norms(self.compute.factor(images), self.factor, self.p, self.compute.tile)
            scores[row : row + len(block)] = values.cpu().numpy()
            row += len(block)
        return scores


def norms(rows: Tensor, targets: Tensor, p: float, tile: tuple[int, int]) -> Tensor:
    """Return p-norms [n] along the rows of rows @ targets.T, tile by tile: [n, d], [M, d].

    Powers are taken of quotients by the maximum so far: otherwise most vanish for a large p.
    """
    largest, total = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
    for row in range(0, len(rows), tile[0]):
        some = slice(row, row + tile[0])
        for start in range(0, len(targets), tile[1]):
            part = products(rows[some], targets[start : start + tile[1]])
            low, high = torch.aminmax(part, dim=1)
            now = torch.maximum(largest[some], torch.maximum(-low, high).double())
            if p != math.inf:
                scale = now.clamp_min(_TINY)
                total[some] *= (largest[some] / scale).pow(p)
                total[some] += part.abs_().div_(scale[:, None]).pow_(p).sum(1)
            largest[some] = now
    norm: Tensor = largest if p == math.inf else largest * total.pow(1 / p)
    return norm
