"""Putting the hook into open_clip's trainer, and taking it out again."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.batches import WeighedLoader
from datacomp_flyt.open_clip_hook.first_shards import check_first_shards
from datacomp_flyt.open_clip_hook.log_weights import (
    LogWeights,
    ScoringModelWeights,
    read_scores,
    read_weights,
)
from datacomp_flyt.open_clip_hook.loss import WeightedClipLoss
from datacomp_flyt.open_clip_hook.pending import PendingBatch
from datacomp_flyt.open_clip_hook.reading import SubsetReader, open_subset
from datacomp_flyt.open_clip_hook.tar_blocks import reader_of_blocks
from datacomp_flyt.open_clip_hook.trainer import (
    HOOKED,
    Trainer,
    check_arguments,
    find_trainer,
)
from datacomp_flyt.open_clip_hook.uid_columns import UidTokenizer
from datacomp_flyt.pool.uids import UID_DTYPE

MODEL = "ViT-B-32"


class Hook:
    """What `install_hook` put in, and whether the trainer has come by."""

    def __init__(
        self,
        trainer: Trainer,
        subset: str | Path | None,
        log_weights: LogWeights | None,
        distinct_in_batch: bool,
    ) -> None:
        """
        Args:
            trainer: whose functions to take the place of.
            subset: a uid subset to read; None for all.
            log_weights: None to leave the loss alone.
            distinct_in_batch: no pair twice in a batch.
        """
        self.trainer = trainer
        self._subset = None if subset is None else open_subset(subset)
        self._log_weights = log_weights
        self._distinct_in_batch = distinct_in_batch
        self._pending = PendingBatch()
        self._reads, self._weighs = False, log_weights is None
        self._stock: dict[str, Any] = {}

    @property
    def was_used(self) -> bool:
        """Whether the trainer asked for its data, and for its loss where that is weighted."""
        return self._reads and self._weighs

    def install(self) -> None:
        """Take the place of the trainer's three functions."""
        data, main = self.trainer.data, self.trainer.main
        maker = self.trainer.loss_maker
        self._stock = {
            name: getattr(module, name)
            for module, name in ((data, "tarfile_to_samples_nothrow"), (main, "get_data"))
        }
        self._stock[maker] = getattr(main, maker)
        read = self._stock["tarfile_to_samples_nothrow"]
        reader = SubsetReader(
            read if self._subset is None else reader_of_blocks(data),
            self._subset,
            self._log_weights is not None,
            self.trainer.drops_empty_captions,
        )
        setattr(data, HOOKED, True)
        data.tarfile_to_samples_nothrow = reader  # type: ignore[attr-defined]
        main.get_data = self._get_data  # type: ignore[attr-defined]
        if self._log_weights is not None:
            setattr(main, maker, self._make_loss)

    def remove(self) -> None:
        """Give the trainer its own functions back."""
        stock, self._stock = self._stock, {}
        delattr(self.trainer.data, HOOKED)
        for name, function in stock.items():
            module = self.trainer.data if name.startswith("tarfile") else self.trainer.main
            setattr(module, name, function)

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
        make = self._stock["get_data"]
        if not args.train_data and not args.dataset_type.startswith("synthetic"):
            return dict(make(args, preprocess_fns, epoch, tokenizer, **others))
        self._check_data(args)
        urls, _ = self.trainer.data.expand_urls(args.train_data)
        read = self._stock["tarfile_to_samples_nothrow"]
        check_first_shards(read, list(urls), self._subset, self._log_weights)
        training, evaluation = copy.copy(args), copy.copy(args)
        training.val_data = training.imagenet_val = training.imagenet_v2 = None
        evaluation.train_data = None
        if self._log_weights is None:
            data = make(training, preprocess_fns, epoch, tokenizer, **others)
        else:
            self._log_weights.load(str(args.device))
            data = make(training, preprocess_fns, epoch, UidTokenizer(tokenizer), **others)
            data["train"].dataloader = WeighedLoader(
                data["train"].dataloader,
                self._log_weights,
                self._pending,
                tokenizer("").shape[1],
                args.accum_freq,
                self._distinct_in_batch,
                str(args.device),
            )
        self._reads = True
        return {**data, **make(evaluation, preprocess_fns, epoch, tokenizer, **others)}

    def _check_data(self, args: Namespace) -> None:
        data = self.trainer.data
        if data.get_dataset_fn(args.train_data, args.dataset_type) is not data.get_wds_dataset:
            raise InputError(
                f"--dataset-type {args.dataset_type} is no webdataset: the hook reads uids out of "
                "tars, so give those to --train-data"
            )
        for name in ("use_naflex", "variable_text", "json_text_key"):
            if getattr(args, name, None):
                flag = name.replace("_", "-")
                raise InputError(f"--{flag}: the hook does not know such batches, train without")
        if getattr(args, "text_key", None) not in (None, "txt"):
            raise InputError(f"--text-key {args.text_key}: the hook knows captions in .txt alone")

    def _make_loss(self, args: Namespace, *others: Any, **named: Any) -> Any:
        """The trainer's loss, or the task that it belongs to, with our loss in it."""
        made = self._stock[self.trainer.loss_maker](args, *others, **named)
        stock = made.loss if self.trainer.makes_tasks else made
        self._check_loss(args, stock)
        weighted = WeightedClipLoss(stock, self._pending, self._distinct_in_batch)
        self._weighs = True
        if not self.trainer.makes_tasks:
            return weighted
        made.loss = weighted
        return made

    def _check_loss(self, args: Namespace, stock: Any) -> None:
        from open_clip import ClipLoss

        if type(stock) is not ClipLoss:
            raise InputError(
                f"this training's loss is {type(stock).__name__}, and the weighted loss stands in "
                "for ClipLoss alone: train a plain CLIP model, or leave out weights and "
                "--distinct_in_batch (a --subset alone works with any loss)"
            )
        for name in ("forward", "get_logits", "get_ground_truth"):
            check_arguments(getattr(type(stock), name), self.trainer)
        if getattr(stock, "use_horovod", False):
            raise InputError("--horovod: the hook knows torch.distributed alone, so use torchrun")
        if stock.world_size > 1 and stock.local_loss and not stock.gather_with_grad:
            raise InputError(
                "--local-loss without --gather-with-grad: on several ranks its gradient is wrong "
                "(open_clip's own by half); add --gather-with-grad"
            )
        strategy = getattr(args, "torchcompile_strategy", "model")
        if getattr(args, "torchcompile", False) and strategy != "model":
            raise InputError(
                f"--torchcompile-strategy {strategy} compiles the loss, whose weights come from "
                "outside: use --torchcompile-strategy model"
            )
        _check_equal_weights(type(stock), self.trainer)


def _check_equal_weights(clip_loss: type[nn.Module], trainer: Trainer) -> None:
    """Raise unless ours with weights 1 is the installed ClipLoss, on a small batch."""
    pending = PendingBatch()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 4, generator=generator)
    images, texts = F.normalize(features, dim=2)
    scale = torch.tensor(5.0)
    uids = np.zeros(8, UID_DTYPE)
    pending.push(LogWeights()(uids, images, texts), uids)
    ours = WeightedClipLoss(clip_loss(), pending, False)(images, texts, scale)
    theirs = clip_loss()(images, texts, scale)
    if not torch.allclose(ours, theirs, rtol=1e-5):
        raise InputError(
            f"ClipLoss of open_clip_torch {trainer.version} is {theirs.item():.6f} where the "
            f"hook's with equal weights is {ours.item():.6f}: it is another loss, so install "
            "another release"
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
    distinct_in_batch: bool = False,
    allow_unknown_version: bool = False,
) -> Hook:
    """Make open_clip's trainer weigh its examples, read a subset, or both.

    To be called before the trainer's `main()`, in every rank; `Hook.remove` undoes it.

    Args:
        weights: parquet of `uid` and a weight of at least 0, a file or a folder.
        scores: or of `uid` and a score, whose softmax over each batch is the weight.
        column: which of several columns of numbers.
        missing_value: weight or score of examples that the table lacks; None to refuse them.
        scoring_model: or a head of E-FLYT trained on features made from images, which scores each
            batch.
        extractor_model, extractor_checkpoint: what makes these features; the checkpoint of
            `flyt.pt` is in it.
        subset: a uid subset (.npy): only its examples, each as often as it says.
        distinct_in_batch: no pair twice in a contrastive batch.
        allow_unknown_version: of open_clip.

    Raises:
        InputError: nothing to do, two kinds of weights, files that are not right, or no trainer
            that the hook knows.
    """
    kinds = {"--weights": weights, "--scores": scores, "--scoring_model": scoring_model}
    given = [flag for flag, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: weights come from one of them")
    if not given and subset is None and not distinct_in_batch:
        raise InputError(
            "nothing to do: give --weights, --scores or --scoring_model, --subset, or "
            "--distinct_in_batch"
        )
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
    hook = Hook(find_trainer(allow_unknown_version), subset, log_weights, distinct_in_batch)
    hook.install()
    return hook
