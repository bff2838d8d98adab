"""Runs open_clip's trainer, or a script that calls it, on weighted examples or a subset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.distributed.torchrun_ranks import torchrun_environment
from datacomp_flyt.open_clip_hook.hook import install_hook
from datacomp_flyt.open_clip_hook.run_script import run_script


def train_clip(
    script_and_flags: Sequence[str],
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
) -> None:
    """Train CLIP with an unmodified trainer script on weighted examples, on a subset, or both.

    The script runs in this process, in each of torchrun's ranks, and writes its own checkpoints
    and logs. `install_hook` describes the keyword arguments.

    Args:
        script_and_flags: the words of the command after `python`: a script such as DataComp's
            `train.py` and its flags, or `-m`, a module such as `open_clip_train.main`, and its
            flags.

    Raises:
        InputError: the cases of `install_hook`; the script or module does not exist, asks for a
            training that the hook does not support, or ends without training; or one of
            torchrun's variables is missing.
        SystemExit: the script ended with an exit code other than 0.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        torchrun_environment()  # the trainer's own message would be less clear
    hook = install_hook(
        weights=weights,
        scores=scores,
        column=column,
        missing_value=missing_value,
        scoring_model=scoring_model,
        extractor_model=extractor_model,
        extractor_checkpoint=extractor_checkpoint,
        subset=subset,
        available=available,
        distinct_in_batch=distinct_in_batch,
        model_config=model_config,
        shuffle_seed=shuffle_seed,
        allow_unknown_version=allow_unknown_version,
    )
    try:
        run_script(script_and_flags, hook)
    finally:
        hook.remove()
