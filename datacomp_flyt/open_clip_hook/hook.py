"""Installs the hook in open_clip's trainer, and removes it."""

from __future__ import annotations

import contextlib
import copy
import logging
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from datacomp_flyt.clip.models import known_name
from datacomp_flyt.errors import InputError, printable
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.open_clip_hook.batch_weights import BatchWeights
from datacomp_flyt.open_clip_hook.first_shards import check_first_shards
from datacomp_flyt.open_clip_hook.log_weights import (
    LogWeights,
    ScoringModelWeights,
    read_scores,
    read_weights,
)
from datacomp_flyt.open_clip_hook.loss import WeightedClipLoss
from datacomp_flyt.open_clip_hook.preconditions import check_data, check_loss, check_names
from datacomp_flyt.open_clip_hook.seeded_shuffle import seeded_shuffles
from datacomp_flyt.open_clip_hook.subset_images import count_images
from datacomp_flyt.open_clip_hook.subset_reader import StockReader, SubsetReader, open_subset
from datacomp_flyt.open_clip_hook.tar_blocks import BlockReader
from datacomp_flyt.open_clip_hook.trainer import (
    HOOKED,
    Trainer,
    find_trainer,
)
from datacomp_flyt.open_clip_hook.uid_columns import UidTokenizer
from datacomp_flyt.open_clip_hook.weighted_loader import WeightedLoader
from datacomp_flyt.pool.available import read_available


class Hook:
    """The hook: installs and removes itself, and tells whether the trainer has used it."""

    def __init__(
        self,
        trainer: Trainer,
        *,
        subset: str | Path | None = None,
        log_weights: LogWeights | None = None,
        distinct_in_batch: bool = False,
        shuffle_seed: int | None = None,
        available: str | Path | None = None,
    ) -> None:
        """
        Args:
            trainer: the trainer whose functions are replaced.
            subset: the uid subset to read; None for all examples.
            log_weights: computes the weights of a batch; None to leave the loss unchanged.
            distinct_in_batch: move repeats of a pair out of a batch.
            shuffle_seed: the seed of the sample shuffle; None for the trainer's own shuffle,
                which is seeded by the clock.
            available: a list of the images, to count the subset's draws that have an image.

        Raises:
            InputError: the subset or the list of images cannot be read.
        """
        self.trainer = trainer
        self._shuffle_seed = shuffle_seed
        self._subset = None if subset is None else open_subset(subset)
        self._available = None if available is None else read_available(str(available))
        self._log_weights = log_weights
        self._distinct_in_batch = distinct_in_batch
        self._batch_weights = BatchWeights()
        self._made_data, self._made_loss = False, log_weights is None
        self._stock: dict[tuple[ModuleType, str], Any] = {}
        self._lock = contextlib.ExitStack()

    @property
    def was_used(self) -> bool:
        """True if the trainer has made its data, and its loss if that is weighted."""
        return self._made_data and self._made_loss

    def install(self) -> None:
        """Replace the trainer's functions."""
        data, main = self.trainer.data, self.trainer.main
        self._stock = {
            (data, "tarfile_to_samples_nothrow"): data.tarfile_to_samples_nothrow,
            (main, "get_data"): main.get_data,
        }
        setattr(data, HOOKED, True)
        data.tarfile_to_samples_nothrow = _refuse_to_read  # type: ignore[attr-defined]
        main.get_data = self._get_data  # type: ignore[attr-defined]
        if self._log_weights is not None:
            maker = self.trainer.loss_maker
            self._stock[main, maker] = getattr(main, maker)
            setattr(main, maker, self._make_loss)

    def remove(self) -> None:
        """Restore the trainer's functions and release the run's lock."""
        self._lock.close()
        for (module, name), function in self._stock.items():
            setattr(module, name, function)
            vars(self.trainer.data).pop(HOOKED, None)
        self._stock = {}

    def _get_data(
        self,
        args: Namespace,
        preprocess_fns: Any,
        epoch: int = 0,
        tokenizer: Any = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Return the trainer's data, with the training data read through the hook.

        Training and evaluation data are made in two calls, because one call uses one tokenizer.
        """
        make = self._stock[self.trainer.main, "get_data"]
        if not args.train_data and not args.dataset_type.startswith("synthetic"):
            return dict(make(args, preprocess_fns, epoch, tokenizer, **others))
        check_data(args, self.trainer)
        self._lock.close()
        # main() has made the folder of the run; a script that only makes the data has none
        if args.rank == 0 and args.name and (run := Path(args.logs) / args.name).is_dir():
            self._lock.enter_context(lock_outputs(run))
        urls, _ = self.trainer.data.expand_urls(args.train_data)
        read = self._stock[self.trainer.data, "tarfile_to_samples_nothrow"]
        check_names(list(urls))
        check_first_shards(
            *(read, list(urls), self._subset, self._log_weights),
            self.trainer.drops_empty_captions,
        )
        training, evaluation = copy.copy(args), copy.copy(args)
        training.val_data = training.imagenet_val = training.imagenet_v2 = None
        evaluation.train_data = None
        if self._subset is not None:
            log = int(args.rank) == 0
            samples = count_images(self._subset, list(urls), self._available, log)
            self._fit_epoch(training, samples)
        if self._log_weights is None:
            data = self._read_through(make, training, preprocess_fns, epoch, tokenizer, **others)
        else:
            self._log_weights.load(str(args.device), tokenizer, preprocess_fns[0])
            uid_tokenizer = UidTokenizer(tokenizer)
            data = self._read_through(
                make, training, preprocess_fns, epoch, uid_tokenizer, **others
            )
            data["train"].dataloader = WeightedLoader(
                data["train"].dataloader,
                self._log_weights,
                self._batch_weights,
                context_length=tokenizer("").shape[1],
                accum_freq=args.accum_freq,
                distinct_in_batch=self._distinct_in_batch,
                device=str(args.device),
            )
        self._made_data = True
        return {**data, **make(evaluation, preprocess_fns, epoch, tokenizer, **others)}

    def _read_through(self, make: Any, *args: Any, **others: Any) -> dict[str, Any]:
        """Return the data that the trainer makes while its reader is replaced."""
        host: Any = self.trainer.data
        stock = self._stock[host, "tarfile_to_samples_nothrow"]
        host.tarfile_to_samples_nothrow = SubsetReader(
            StockReader(stock) if self._subset is None else BlockReader(host.__name__),
            self._subset,
            self._log_weights is not None,
            self.trainer.drops_empty_captions,
        )
        try:
            if self._shuffle_seed is None:
                return dict(make(*args, **others))
            with seeded_shuffles(self._shuffle_seed, args[0].rank) as shuffles:
                data = dict(make(*args, **others))
            for shuffle in shuffles:
                shuffle.epoch = data["train"].shared_epoch
            return data
        finally:
            host.tarfile_to_samples_nothrow = _refuse_to_read

    def _fit_epoch(self, args: Namespace, samples: int | None) -> None:
        """Set the length of an epoch to the subset's samples in the tars, unless the user set it.

        If their number is not known, the length is that of the subset. Without this, the trainer
        would use the pool's length.
        """
        assert self._subset is not None
        if args.train_num_samples is None:
            draws = int(self._subset.counts.sum(dtype=np.int64))
            args.train_num_samples = draws if samples is None else samples
            logging.info(
                f"An epoch is {args.train_num_samples:,} samples, the draws of "
                f"{printable(str(self._subset.path))}"
                + ("." if samples is None else " that have an image.")
            )
        if not args.dataset_resampled and args.workers * args.world_size > 1:
            logging.warning(
                "Without --dataset-resampled all data loader workers make the same number of "
                "batches, each from its own shards: a worker whose shards have few of the subset's "
                "pairs repeats these more often than the subset does."
            )

    def _make_loss(self, args: Namespace, *others: Any, **named: Any) -> Any:
        """Return the weighted loss, or the trainer's task with the weighted loss in it."""
        make = self._stock[self.trainer.main, self.trainer.loss_maker]
        loss_or_task = make(args, *others, **named)
        stock = loss_or_task.loss if self.trainer.makes_tasks else loss_or_task
        check_loss(args, stock, self.trainer)
        weighted = WeightedClipLoss(stock, self._batch_weights, self._distinct_in_batch)
        self._made_loss = True
        if not self.trainer.makes_tasks:
            return weighted
        loss_or_task.loss = weighted
        return loss_or_task


def _refuse_to_read(*args: Any, **named: Any) -> Any:
    raise InputError(
        "the training data were not opened by the trainer's main, so neither weights nor a subset "
        "would apply: call get_data of the module of main, or remove() the hook"
    )


def install_hook(
    *,
    weights: str | Path | None = None,
    scores: str | Path | None = None,
    column: str | None = None,
    missing_value: float | None = None,
    scoring_model: str | None = None,
    extractor_model: str = "ViT-B-32",
    extractor_checkpoint: str | None = None,
    subset: str | Path | None = None,
    available: str | Path | None = None,
    distinct_in_batch: bool = False,
    model_config: str | None = None,
    shuffle_seed: int | None = None,
    allow_unknown_version: bool = False,
) -> Hook:
    """Replace functions of open_clip's trainer, so that it weighs examples or reads a subset.

    Call this in every rank before the trainer's `main()`; `Hook.remove` undoes it. `weights`,
    `scores` and `scoring_model` exclude each other.

    Args:
        weights: a parquet file or folder with `uid` and a column of weights, none below 0.
        scores: the same with a column of scores, whose softmax over a batch gives the weights.
        column: the column of `weights` or `scores`; needed if there are several numeric ones.
        missing_value: the weight or score of examples outside the table; None to refuse them.
        scoring_model: a head of E-FLYT trained on features made from images; it scores each batch.
        extractor_model, extractor_checkpoint: the model that makes these features; `flyt.pt`
            contains its own.
        subset: a uid subset (.npy): only its examples are read, each as often as it is drawn.
        available: a list of the images (`datacomp-flyt available`), used to count the subset's
            draws that have an image; their number is the length of an epoch.
        distinct_in_batch: move repeats of a pair out of each contrastive batch.
        model_config: a JSON file whose stem becomes a valid `--model` of the trainer.
        shuffle_seed: the seed of the sample shuffle and, in loader processes, of the crops: two
            runs see the same batches, and so does a resumed run.
        allow_unknown_version: accept an unknown version of open_clip.

    Raises:
        InputError: no argument asks for a change, several kinds of weights are given, a file is
            not valid, or the installed trainer is not supported.
    """
    _check_changes(
        distinct_in_batch, weights, scores, scoring_model, subset, model_config, shuffle_seed
    )
    if available is not None and subset is None:
        raise InputError("--available counts the draws of --subset that have an image: give both")
    log_weights = _make_log_weights(
        weights=weights, scores=scores, column=column, missing_value=missing_value,
        scoring_model=scoring_model, extractor_model=extractor_model,
        extractor_checkpoint=extractor_checkpoint, distinct_in_batch=distinct_in_batch,
    )  # fmt: skip
    if model_config is not None:
        known_name(model_config, "--model_config")
    hook = Hook(
        find_trainer(allow_unknown_version), subset=subset, log_weights=log_weights,
        distinct_in_batch=distinct_in_batch, shuffle_seed=shuffle_seed, available=available,
    )  # fmt: skip
    hook.install()
    return hook


def _check_changes(distinct_in_batch: bool, *others: object) -> None:
    """Raise InputError unless an argument of `install_hook` asks for a change."""
    if not distinct_in_batch and all(other is None for other in others):
        raise InputError(
            "nothing to do: give --weights, --scores or --scoring_model, --subset, "
            "--distinct_in_batch, --model_config, or --shuffle_seed"
        )


def _make_log_weights(
    *,
    weights: str | Path | None,
    scores: str | Path | None,
    column: str | None,
    missing_value: float | None,
    scoring_model: str | None,
    extractor_model: str,
    extractor_checkpoint: str | None,
    distinct_in_batch: bool,
) -> LogWeights | None:
    """Return the log weights that some arguments of `install_hook` select, None without any."""
    kinds = {"--weights": weights, "--scores": scores, "--scoring_model": scoring_model}
    given = [flag for flag, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other: give one of them")
    for flag, value in {"--column": column, "--missing_value": missing_value}.items():
        if value is not None and weights is None and scores is None:
            raise InputError(f"{flag} is for --weights or --scores: give one of them")
    if weights is not None:
        return read_weights(weights, column, missing_value)
    if scores is not None:
        return read_scores(scores, column, missing_value)
    if scoring_model is not None:
        return ScoringModelWeights(scoring_model, extractor_model, extractor_checkpoint)
    return LogWeights() if distinct_in_batch else None
