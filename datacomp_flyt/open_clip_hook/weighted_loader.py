"""A data loader for the trainer that hands the weights of each batch to the loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from datacomp_flyt.distributed.collectives import rank_and_world_size, sum_over_ranks
from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.batch_weights import BatchWeights
from datacomp_flyt.open_clip_hook.deduplicate_batches import Batch, deduplicate_batches
from datacomp_flyt.open_clip_hook.log_weights import LogWeights
from datacomp_flyt.open_clip_hook.uid_columns import split


class WeightedLoader:
    """Wraps the trainer's loader: yields its batches without the uid columns of their texts."""

    def __init__(
        self,
        loader: Any,
        log_weights: LogWeights,
        batch_weights: BatchWeights,
        *,
        context_length: int,
        accum_freq: int,
        distinct_in_batch: bool,
        device: str,
    ) -> None:
        """
        Args:
            loader: the trainer's loader, whose texts end with the two columns of the uid.
            log_weights: computes the weights of a batch.
            batch_weights: receives them for the loss.
            context_length: L.
            accum_freq: number of batches in a step (`--accum-freq`).
            distinct_in_batch: move repeats out of a step's batches.
            device: the device of collectives between ranks.
        """
        self._loader, self._log_weights, self._batch_weights = loader, log_weights, batch_weights
        self._context_length, self._accum_freq = context_length, accum_freq
        self._distinct_in_batch, self._device = distinct_in_batch, device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)  # num_batches, num_samples

    def __iter__(self) -> Iterator[Any]:
        """Yield batches as the trainer expects them: [images, texts], or a dict."""
        self._batch_weights.start_epoch()
        as_dict: list[bool] = []
        batches, exchange_count = self._batches(as_dict), [0]
        if self._distinct_in_batch:
            batches = deduplicate_batches(batches, self._accum_freq, exchange_count)
        for batch in batches:
            log_weights = self._log_weights(batch.uids, batch.images, batch.texts)
            self._batch_weights.push(log_weights, batch.uids)
            images, texts = batch.images, batch.texts
            yield {"image": images, "text": texts} if as_dict[0] else [images, texts]
        if self._distinct_in_batch:
            self._report(exchange_count[0])

    def _batches(self, as_dict: list[bool]) -> Iterator[Batch]:
        for batch in self._loader:
            if not as_dict:
                as_dict.append(isinstance(batch, dict))
            images, texts = (batch["image"], batch["text"]) if as_dict[0] else batch
            if not isinstance(images, Tensor):
                raise InputError(
                    "a batch's images are no tensor: the hook does not support NaFlex batches, so "
                    "train without it"
                )
            tokens, uids = split(texts, self._context_length)
            yield Batch(images, tokens, uids.copy())

    def _report(self, num_exchanges: int) -> None:
        total = torch.tensor(num_exchanges, device=self._device)
        sum_over_ranks([total])
        if rank_and_world_size()[0] == 0:
            logging.info(
                f"distinct_in_batch: {int(total):,} moves of an example to the next batch in this "
                f"epoch; {self._batch_weights.num_masked:,} repeats that could not be moved had "
                "weight 0"
            )
