"""Checks that refuse trainings which the hook does not support."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import ClipLoss
from torch import nn

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.batch_weights import BatchWeights
from datacomp_flyt.open_clip_hook.log_weights import LogWeights
from datacomp_flyt.open_clip_hook.loss import WeightedClipLoss
from datacomp_flyt.open_clip_hook.trainer import Trainer, check_arguments
from datacomp_flyt.pool.uids import UID_DTYPE


def check_data(args: Namespace, trainer: Trainer) -> None:
    """Check that the training data are tars with captions, in the form that the hook reads.

    Args:
        args: the trainer's parsed flags.
        trainer: the installed trainer.

    Raises:
        InputError: a flag asks for other data.
    """
    data: Any = trainer.data
    if data.get_dataset_fn(args.train_data, args.dataset_type) is not data.get_wds_dataset:
        raise InputError(
            f"--dataset-type {args.dataset_type} is no webdataset: the hook reads uids from tars, "
            "so give tars to --train-data"
        )
    for name in ("use_naflex", "variable_text", "json_text_key"):
        if getattr(args, name, None):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: the hook does not support such batches, train without it")
    if getattr(args, "text_key", None) not in (None, "txt"):
        raise InputError(
            f"--text-key {args.text_key}: the hook supports captions in .txt only, train without it"
        )
    if getattr(args, "image_key", None) not in (None, getattr(data, "DEFAULT_IMAGE_KEY", None)):
        raise InputError(
            f"--image-key {args.image_key}: the hook supports open_clip's default only, train "
            "without it"
        )


def check_names(urls: Sequence[str]) -> None:
    """Raise InputError if webdataset would run the name of a file as a command, or fetch it.

    webdataset takes the text before a colon for a scheme, and DataComp's train.py passes the names
    of the files in its folder of data.
    """
    for url in urls:
        if ":" in url.split("/")[0] and os.path.lexists(url):
            raise InputError(
                f"--train-data names the file {url}, which the trainer would take for a command or "
                "an address: put ./ before it, or rename it"
            )


def check_loss(args: Namespace, stock: Any, trainer: Trainer) -> None:
    """Check that the trainer's loss is the ClipLoss which the weighted loss can replace.

    Args:
        args: the trainer's parsed flags.
        stock: the trainer's loss.
        trainer: the installed trainer.

    Raises:
        InputError: it is another loss, or the flags ask for something that the hook does not
            support.
    """
    if type(stock) is not ClipLoss:
        raise InputError(
            f"this training's loss is {type(stock).__name__}, and the weighted loss can replace "
            "ClipLoss only: train a plain CLIP model, or leave out weights and "
            "--distinct_in_batch (a --subset alone works with any loss)"
        )
    for name in ("forward", "get_logits", "get_ground_truth"):
        check_arguments(getattr(type(stock), name), trainer)
    if getattr(stock, "use_horovod", False):
        raise InputError("--horovod: the hook supports torch.distributed only, so use torchrun")
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
    _check_equal_weights(type(stock), trainer)


def _check_equal_weights(clip_loss: type[nn.Module], trainer: Trainer) -> None:
    """Raise InputError unless the weighted loss with weights 1 is the installed ClipLoss."""
    batch_weights = BatchWeights()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 4, generator=generator)
    images, texts = F.normalize(features, dim=2)
    scale = torch.tensor(5.0)
    uids = np.zeros(8, UID_DTYPE)
    batch_weights.push(LogWeights()(uids, images, texts), uids)
    ours = WeightedClipLoss(clip_loss(), batch_weights, False)(images, texts, scale)
    theirs = clip_loss()(images, texts, scale)
    if not torch.allclose(ours, theirs, rtol=1e-5):
        raise InputError(
            f"ClipLoss of open_clip_torch {trainer.version} is {theirs.item():.6f} where the "
            f"hook's with equal weights is {ours.item():.6f}: it is another loss, so install "
            "another release"
        )
