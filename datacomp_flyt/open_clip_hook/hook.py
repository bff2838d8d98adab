"""Putting the hook into open_clip's trainer, and taking it out again."""

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

MODEL = "ViT-B-32"


class Hook:
    """What `install_hook` put in, and whether the trainer has come by."""

    def __init__(
        self,
        trainer: Trainer,
        subset: str | Path | None,
        log_weights: LogWeights | None,
        distinct_in_batch: bool,
        shuffle_seed: int | None = None,
        available: str | Path | None = None,
    ) -> None:
        """
        Args:
            trainer: the trainer whose functions are replaced.
            subset: the uid subset to read; None for all examples.
            log_weights: computes the weights of a batch; None to leave the loss unchanged.
            distinct_in_batch: no pair twice in a batch.
            shuffle_seed: the seed of the sample shuffle; None for the trainer's, from the clock.
            available: a list of the images, to count the subset's draws that have an image.
        """
        self.trainer = trainer
        self._shuffle_seed = shuffle_seed
        self._subset = None if subset is None else open_subset(subset)
        self._available = None if available is None else read_available(str(available))
        self._log_weights = log_weights
        self._distinct_in_batch = distinct_in_batch
        self._batch_weights = BatchWeights()
        self._reads, self._weighs = False, log_weights is None
        self._stock: dict[tuple[ModuleType, str], Any] = {}
        self._lock = contextlib.ExitStack()

    @property
    def was_used(self) -> bool:
        """Whether the trainer asked for its data, and for its loss where that is weighted."""
        return self._reads and self._weighs

    def install(self) -> None:
        """Take the place of the trainer's three functions."""
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
        """Give the trainer its own functions back, and the folder of the run to others."""
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
        """The trainer's data, of which the training part is ours.

        Made apart, since all of it gets the same tokenizer.
        """
        make = self._stock[self.trainer.main, "get_data"]
        if not args.train_data and not args.dataset_type.startswith("synthetic"):
            return dict(make(args, preprocess_fns, epoch, tokenizer, **others))
        check_data(args, self.trainer)
        self._lock.close()
        # main() has made the folder of the run; a script that asks for data alone has none
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
                tokenizer("").shape[1],
                args.accum_freq,
                self._distinct_in_batch,
                str(args.device),
            )
        self._reads = True
        return {**data, **make(evaluation, preprocess_fns, epoch, tokenizer, **others)}

    def _read_through(self, make: Any, *args: Any, **others: Any) -> dict[str, Any]:
        """Data that the trainer makes while our reader is in the place of its own."""
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
        """Set the length of an epoch, unless the user did, to the subset's samples in the tars.

        It is the number of all draws if the samples are not known. The trainer would take the
        pool's length.
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
                "Without --dataset-resampled each data loader worker makes as many batches as the "
                "others, of the shards that it has: pairs of a worker with few of the subset's "
                "come more often than it says."
            )

    def _make_loss(self, args: Namespace, *others: Any, **named: Any) -> Any:
        """The trainer's loss, or the task that it belongs to, with our loss in it."""
        made = self._stock[self.trainer.main, self.trainer.loss_maker](args, *others, **named)
        stock = made.loss if self.trainer.makes_tasks else made
        check_loss(args, stock, self.trainer)
        weighted = WeightedClipLoss(stock, self._batch_weights, self._distinct_in_batch)
        self._weighs = True
        if not self.trainer.makes_tasks:
            return weighted
        made.loss = weighted
        return made


def _refuse_to_read(*args: Any, **named: Any) -> Any:
    raise InputError(
        "training data were opened by another way than the trainer's main: they would be neither "
        "weighted nor a subset, so take get_data from the module of main, or remove() the hook"
    )


def install_hook(
    *,
    weights: str | Path | None = None,
    scores: str | Path | None = None,
    column: str | None = None,
    missing_value: float | None = None,
    scoring_model: str | None = None,
    extractor_model: str = MODEL,
    extractor_checkpoint: str | None = None,
    subset: str | Path | None = None,
    available: str | Path | None = None,
    distinct_in_batch: bool = False,
    model_config: str | None = None,
    shuffle_seed: int | None = None,
    allow_unknown_version: bool = False,
) -> Hook:
    """Make open_clip's trainer weigh its examples, read a subset, or both.

    Call it in every rank before the trainer's `main()`; `Hook.remove` undoes it.

    Args:
        weights: parquet of `uid` and a weight of at least 0, a file or a folder.
        scores: or of `uid` and a score, whose softmax over each batch is the weight.
        column: the column to read, if there are several numeric ones.
        missing_value: weight or score of examples that the table lacks; None to refuse them.
        scoring_model: or a head of E-FLYT trained on features made from images, which scores each
            batch.
        extractor_model, extractor_checkpoint: the model that makes these features; `flyt.pt`
            contains its own.
        subset: a uid subset (.npy): only its examples, each as often as it says.
        available: a list of the images (`datacomp-flyt available`), by which the subset's draws
            that have an image are counted; their number is the length of an epoch.
        distinct_in_batch: no pair twice in a contrastive batch.
        model_config: a JSON file whose stem the trainer's `--model` may then name.
        shuffle_seed: decides the sample shuffle and, in loader processes, the crops: two runs see
            the same batches, and a resumed one those that it would have seen.
        allow_unknown_version: accept an unknown version of open_clip.

    Raises:
        InputError: no argument asks for a change, there are two kinds of weights, a file is not
            right, or the hook does not know the installed trainer.
    """
    kinds = {"--weights": weights, "--scores": scores, "--scoring_model": scoring_model}
    given = [flag for flag, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: weights come from one of them")
    others = (subset, model_config, shuffle_seed)
    if not given and not distinct_in_batch and all(value is None for value in others):
        raise InputError(
            "nothing to do: give --weights, --scores or --scoring_model, --subset, "
            "--distinct_in_batch, --model_config, or --shuffle_seed"
        )
    if available is not None and subset is None:
        raise InputError("--available tells which draws of --subset have an image: give that too")
    if model_config is not None:
        known_name(model_config, "--model_config")
    tables = {"--column": column, "--missing_value": missing_value}
    for flag, value in tables.items():
        if value is not None and weights is None and scores is None:
            raise InputError(f"{flag} is for --weights or --scores: give one of them")

    log_weights: LogWeights | None = None
    if weights is not None:
        log_weights = read_weights(weights, column, missing_value)
    elif scores is not None:
        log_weights = read_scores(scores, column, missing_value)
    elif scoring_model is not None:
        log_weights = ScoringModelWeights(scoring_model, extractor_model, extractor_checkpoint)
    elif distinct_in_batch:
        log_weights = LogWeights()
    trainer = find_trainer(allow_unknown_version)
    hook = Hook(trainer, subset, log_weights, distinct_in_batch, shuffle_seed, available)
    hook.install()
    return hook
