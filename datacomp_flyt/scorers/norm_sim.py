"""NormSim: how much of a pool's image is like the images of a target set.

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

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.scorers.compute import Compute, products
from datacomp_flyt.scorers.inputs import Floats, iter_embedding_blocks
from datacomp_flyt.scorers.scorer import Arrays, MetadataScorer, from_flags
from datacomp_flyt.scorers.second_moment import second_moment, square_root
from datacomp_flyt.scorers.targets import check_width, digest, load_targets


class NormSim(MetadataScorer):
    """NormSim_p of a pool's image embeddings to target embeddings of the same model."""

    def __init__(
        self,
        targets: Sequence[str],
        p: float = math.inf,
        arch: str = "b32",
        precision: str = "fp32",
        renormalize: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            targets: files of target embeddings, see `load_targets`.
            p: of the norm, at least 1; infinity for the largest.
            arch: prefix of the pool's array: `b32`, `l14`.
        """
        self.array = f"{arch}_img"
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
        add_target_arguments(parser)
        parser.add_argument(
            "--p", type=float, default=math.inf, help="of the norm: inf (default), 2, or any >= 1"
        )

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> NormSim:
        if not args.targets:
            raise InputError("--scorer norm_sim wants --targets: files of target embeddings")
        if not args.p >= 1:
            raise InputError(f"--p is {args.p}, wanted at least 1 (inf, 2, ...)")
        return from_flags(cls, args)

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
            there = self.compute.put(block)
            if self.p == 2:
                values = torch.linalg.vector_norm(there @ self.root, dim=1)
            else:
                values = norms(self.compute.factor(there), self.factor, self.p, self.compute.tile)
            scores[row : row + len(block)] = values.cpu().numpy()
            row += len(block)
        return scores


def norms(rows: Tensor, targets: Tensor, p: float, tile: tuple[int, int]) -> Tensor:
    """p-norm of rows @ targets.T along its rows, never whole in memory: [n, d], [M, d] -> [n]."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for row in range(0, len(rows), tile[0]):
        some = slice(row, row + tile[0])
        for start in range(0, len(targets), tile[1]):
            part = products(rows[some], targets[start : start + tile[1]])
            if p == math.inf:
                low, high = torch.aminmax(part, dim=1)
                total[some] = torch.maximum(total[some], torch.maximum(-low, high).double())
            else:
                total[some] += part.abs_().pow_(p).sum(1)
    return total if p == math.inf else total.pow(1 / p)


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of what is compared with what."""
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="FILE",
        help="target embeddings of the same model: .npy, .npz, .pt, .safetensors, folders of npz",
    )
    parser.add_argument("--arch", default="b32", help="prefix of the npz arrays (b32, l14)")
