"""open_clip's trainer as a script, with all that it leaves to chance decided by --seed.

    python seeded_trainer.py '{"weights": "w.parquet"}' --train-data ... --model hook-tiny ...

The first argument goes to `install_hook` (`null` for the stock trainer). The sample shuffle, which
open_clip seeds with process id and time, is seeded by the data loader's worker and the epoch, and
training images get the evaluation transform: then two runs differ only in what the test varies.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
import webdataset

CONFIGS = Path(__file__).parent / "model_configs"


def trainer() -> Any:
    """`open_clip_train.main`, or `training.main` before 2.26."""
    newer = importlib.util.find_spec("open_clip_train") is not None
    old = importlib.util.find_spec("training") is not None
    return importlib.import_module("training.main" if old or not newer else "open_clip_train.main")


def make_deterministic(main: Any) -> None:
    data: Any = importlib.import_module(main.__name__.replace("main", "data"))
    epochs: list[Any] = []

    class RememberedEpoch(data.SharedEpoch):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            epochs.append(self)

    def shuffle(bufsize: int, initial: int) -> Any:
        return data.detshuffle2(bufsize, initial, seed=-1, epoch=epochs[-1])

    create = main.create_model_and_transforms

    def create_without_augmentation(*args: Any, **kwargs: Any) -> Any:
        model, _, evaluation = create(*args, **kwargs)
        return model, evaluation, evaluation

    data.SharedEpoch = RememberedEpoch
    webdataset.shuffle = shuffle
    main.create_model_and_transforms = create_without_augmentation


class CpuDistributedDataParallel(torch.nn.parallel.DistributedDataParallel):
    """open_clip names a device to it, which it takes only of a GPU."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, **settings: Any) -> None:
        super().__init__(module, **settings)


if __name__ == "__main__":
    torch.nn.parallel.DistributedDataParallel = CpuDistributedDataParallel  # type: ignore[misc]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    open_clip.add_model_config(CONFIGS)
    main = trainer()
    settings, *arguments = sys.argv[1:]
    if json.loads(settings) is not None:
        from datacomp_flyt.open_clip_hook import install_hook

        install_hook(**json.loads(settings))
    make_deterministic(main)
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # of our own checkpoints
    main.main(arguments)
