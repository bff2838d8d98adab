"""negCLIPLoss: a pair's CLIP score less the log-sum-exp of its scores with the batch.

Wang et al., "CLIPLoss and Norm-Based Data Selection Methods for Multimodal Contrastive Learning",
NeurIPS 2024. Of a batch B that holds pair i, with unit image and text embeddings f and g,

    R_B(i) = T/2 (log sum_j exp(<f_i, g_j> / T) + log sum_j exp(<f_j, g_i> / T))
    score(i) = mean over K random partitions into batches of <f_i, g_i> - R_B(i)

which is -T times pair i's part of the CLIP loss. A batch holds pairs of one metadata file, as in
the public code.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.clip.flags import add_precision
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.uid_randomness import random_bits, stream_keys
from datacomp_flyt.scorers.base.embedding_blocks import check_one_width, read_embeddings
from datacomp_flyt.scorers.base.flags import add_arch, add_renormalize
from datacomp_flyt.scorers.base.matrix_products import Compute, products
from datacomp_flyt.scorers.base.scorer import Arrays, MetadataScorer, read_uids

TEMPERATURE = 0.01
"""The temperature of OpenAI's models."""

_LARGEST_EXPONENT = 87.0  # exp(87) is a float32, and exp(-87) a normal one
_LEAST_SURE = math.exp(-60)  # smaller sums may have lost terms and are computed again


class NegClipLoss(MetadataScorer):
    """negCLIPLoss of the pairs of a pool, from one CLIP model's npz embeddings."""

    uses_gpu = True

    def __init__(
        self,
        *,
        arch: str = "b32",
        temperature_of: str | None = None,
        temperature: float | None = None,
        batch_size: int = 32768,
        num_partitions: int = 10,
        partial_batches: bool = False,
        seed: int = 0,
        precision: str = "fp32",
        renormalize: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            arch: the prefix of the arrays: `b32`, `l14`.
            temperature: T; None for that of `temperature_of`, or 0.01, the one of OpenAI's models
                (the public code has 0.07 for DFN-P).
            batch_size: |B|; a smaller file is one batch.
            num_partitions: K.
            partial_batches: make batches of |B| and a smaller last one, as the public code does. A
                batch of b pairs shifts scores by T log(|B| / b), so batches are of nearly equal
                size by default.
            seed: the seed of the partitions, which depend on the uids and not on the order of rows.
            temperature_of: an open_clip checkpoint of the model that made the embeddings; T is then
                the temperature that it has learned.

        Raises:
            InputError: an argument is out of range, both or a checkpoint without a temperature are
                given.
        """
        temperature = _read_temperature(temperature, temperature_of)
        batch_size = check_integer(batch_size, "--batch_size", least=1)
        num_partitions = check_integer(num_partitions, "--num_partitions", least=1)
        if not 0 < temperature < math.inf:
            raise InputError(f"--temperature is {temperature}, wanted a positive number")
        self.arrays = (f"{arch}_img", f"{arch}_txt")
        self.temperature, self.batch_size = temperature, batch_size
        self.num_partitions, self.partial_batches = num_partitions, partial_batches
        self.seed, self.precision, self.renormalize = seed, precision, renormalize
        self.columns = (column or "negCLIPLoss",)
        self.settings = {
            "arrays": list(self.arrays),
            "temperature": temperature,
            "batch_size": batch_size,
            "num_partitions": num_partitions,
            "partial_batches": partial_batches,
            "seed": seed,
            "precision": precision,
            "renormalize": renormalize,
        }

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_arch(parser)
        add_renormalize(parser)
        add_precision(parser)
        parser.add_argument("--seed", type=int, default=0, help="of the partitions (default: 0)")
        parser.add_argument(
            "--temperature", type=float, help="T (default: 0.01, of OpenAI's models)"
        )
        parser.add_argument(
            "--temperature_of",
            metavar="CHECKPOINT",
            help="take T from the logit scale of this open_clip checkpoint",
        )
        parser.add_argument("--batch_size", type=int, default=32768, help="|B| (default: 32768)")
        parser.add_argument("--num_partitions", type=int, default=10, help="K (default: 10)")
        parser.add_argument(
            "--partial_batches",
            action="store_true",
            help="let the last batch of a file be smaller, as the public code does; its scores "
            "are shifted by T log(|B| / b)",
        )

    def load(self, device: str) -> None:
        self.compute = Compute(device, self.precision)

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        check_one_width(shard, self.arrays)
        images, texts = read_embeddings(shard, self.arrays, self.renormalize, counts)
        usable = np.flatnonzero(np.isfinite(images[:, 0]))
        keys = stream_keys(read_uids(shard)[usable], self.seed)
        totals = np.zeros(len(usable))
        for partition in range(self.num_partitions if len(usable) else 0):
            order = np.argsort(random_bits(keys, partition))
            for batch in self._batches(order):
                rows = usable[batch]
                totals[batch] += neg_clip_loss_of_batch(
                    images[rows], texts[rows], self.temperature, self.compute
                )
        scores = np.full(shard.num_rows, np.nan)
        scores[usable] = totals / self.num_partitions
        return scores

    def _batches(self, order: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        if self.partial_batches:
            return np.split(order, range(self.batch_size, len(order), self.batch_size))
        return np.array_split(order, math.ceil(len(order) / self.batch_size))


def _read_temperature(temperature: float | None, checkpoint: str | None) -> float:
    """Return the temperature, that of a checkpoint, or the default."""
    if checkpoint is None:
        return TEMPERATURE if temperature is None else temperature
    if temperature is not None:
        raise InputError(
            f"--temperature {temperature} and --temperature_of {checkpoint} both set the "
            "temperature: give one of them"
        )
    from datacomp_flyt.clip.models import temperature_of

    return temperature_of(checkpoint, "--temperature_of")


def neg_clip_loss_of_batch(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    temperature: float,
    compute: Compute,
) -> NDArray[np.float64]:
    """Return -T times each pair's part of the CLIP loss of a batch.

    Args:
        images, texts: float32 [b, d], pair by pair.
        temperature: T.
        compute: the device and precision of the products.

    Returns:
        float64 array [b].
    """
    scaled_images = compute.put(images) / temperature
    device_texts = compute.put(texts)
    positives = (scaled_images * device_texts).sum(1).double()
    bound = float(scaled_images.norm(dim=1).max() * device_texts.norm(dim=1).max())
    by_image, by_text = _log_sums(
        compute.factor(scaled_images), compute.factor(device_texts), bound, compute.tile
    )
    scores = temperature * (positives - (by_image + by_text) / 2)
    return np.asarray(scores.cpu().numpy())


def _log_sums(
    rows: Tensor, columns: Tensor, bound: float, tile: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return log sum exp of rows @ columns.T along its rows [n] and columns [m], in float64.

    All products are shifted by the same number, so that one exponential serves both sums and the
    largest possible sum is a float32. A sum so small that terms may have vanished is computed again
    with its own maximum.

    Args:
        bound: an upper bound of the products.
        tile: the numbers of rows and columns of the product that are in memory at once.
    """
    shift = max(bound + math.log(max(len(rows), len(columns))) - _LARGEST_EXPONENT, 0.0)
    by_row, by_column = (
        torch.zeros(len(factor), dtype=torch.float64, device=rows.device)
        for factor in (rows, columns)
    )
    for row in range(0, len(rows), tile[0]):
        some = rows[row : row + tile[0]]
        for column in range(0, len(columns), tile[1]):
            part = products(some, columns[column : column + tile[1]])
            part.sub_(shift).exp_()
            by_row[row : row + tile[0]] += part.sum(1)
            by_column[column : column + tile[1]] += part.sum(0)
    logs = by_row.log() + shift, by_column.log() + shift
    for sums, log, one, other in (
        (by_row, logs[0], rows, columns),
        (by_column, logs[1], columns, rows),
    ):
        again = torch.nonzero(sums < _LEAST_SURE).flatten()
        for some in again.split(tile[0]):
            log[some] = products(one[some], other).logsumexp(1).double()
    return logs
